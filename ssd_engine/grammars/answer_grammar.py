"""What an answer may be, as a grammar: what the request asks for, tool calls in the model's own format, or text.

The grammars are written in llguidance's dialect of Lark, where `<[id]>` is a token by its id.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssd_engine.answers.answer_format import ReasoningStage
from ssd_engine.answers.reasoning import ReasoningFormat
from ssd_engine.answers.tool_formats import MARKERS, ToolFormat
from ssd_engine.config import GenerationParams
from ssd_engine.grammars.guide import is_marker
from ssd_engine.grammars.json_schema import LOOSE_STYLE, json_rule
from ssd_engine.grammars.rules import answer_rule, grammar_source, literal, marker, parameters

Tools = Sequence[Mapping[str, Any]]

_BETWEEN_BARE_CALLS = {ToolFormat.HERMES: r'"\n"', ToolFormat.LLAMA: '"; "'}
"""Formats whose calls are understood without any markup, and what stands between two of these."""

_FENCED = r"(.|\n)*```(json)?\n"
"""What stands before a fenced call."""


@dataclass(frozen=True)
class AnswerGrammar:
    """Writes grammars for one model's answers."""

    format: ToolFormat
    added_tokens: Mapping[str, int]
    """Ids of the tokens that the tokenizer's vocabulary was extended by."""
    control_ids: Collection[int]
    """Those of them that are no part of any text."""
    reasoning: ReasoningFormat | None = None
    """How the model marks its reasoning, which no grammar limits; None: it does not reason apart from its answers."""

    def source(self, params: GenerationParams, tools: Tools, stage: ReasoningStage = "over") -> str | None:
        """The grammar of an answer to a request with these tools on offer; None where any text will do.

        `stage`: how far the reasoning is as the answer begins.
        """
        is_called = bool(tools) and params.tool_choice != "auto"
        may_call = is_called or (bool(tools) and (params.strict is not False or params.grammar is not None))
        if not may_call and params.grammar is None:
            return None
        rules: list[str] = []
        calls = f"{self._begin} calls"
        if may_call:
            rules += self._calls(tools, parallel=params.parallel_tool_calls, lenient=not params.strict)
        if is_called:
            start = calls
            if self._has_bare_calls:
                # Many models leave the markup out; where they may, they know better when to stop.
                start += f' | call {self._more_calls(parallel=params.parallel_tool_calls)} "\\n"?'
        elif params.grammar is not None:
            start = f"answer | {calls}" if may_call else "answer"
            rules.append(f"answer: {answer_rule(params.grammar)}")
        else:
            start = "text | opening calls"
            if self._has_bare_calls:
                start += " | bare | fenced+ text" if params.parallel_tool_calls else " | bare | fenced"
            rules += self._free_text(tools, parallel=params.parallel_tool_calls, lenient=not params.strict)
        if self.reasoning is not None and stage != "over":
            start = f"reasoning{'' if stage == 'open' else '?'} ({start})"
            rules += self._reasoning(self.reasoning, stage)
        return grammar_source(start, rules, params.grammar)

    def _reasoning(self, format: ReasoningFormat, stage: ReasoningStage) -> list[str]:
        """Rules for `reasoning` to the tag that closes it, whatever it says, and the blanks behind it."""
        opening, closing = (self._marker(tag) for tag in format.tags)
        begin = "" if stage == "open" else f"{opening} "
        if closing.startswith("<["):
            others = ",".join(
                str(token_id)
                for token, token_id in self.added_tokens.items()
                if token_id not in self.control_ids and self._marker(token) != closing
            )
            body = f"(THOUGHTS | <[{others}]>)* {closing}" if others else f"THOUGHTS? {closing}"
            rules = [r"THOUGHTS: /(.|\n)+/"]
        else:
            body, rules = "to_closing", [f"to_closing[lazy]: /(.|\\n)*{literal(format.tags[1])}/"]
        return [f"reasoning: {begin}{body} GAP?", r"GAP: /[ \t\r\n]{1,8}/", *rules]

    @property
    def _begin(self) -> str:
        return self._marker(MARKERS[self.format][0])

    def _marker(self, token: str) -> str:
        return marker(token, self.added_tokens)

    def _calls(self, tools: Tools, *, parallel: bool, lenient: bool) -> list[str]:
        """Rules for `calls`: what follows the marker that begins the first call."""
        rules = []
        for i, tool in enumerate(tools):
            rules.append(f"arguments_{i}: %json {json_rule(parameters(tool), lenient=lenient)}")
            rules.append(f"call_{i}: {self._call(tool['function']['name'], f'arguments_{i}')}")
        rules.append(f"call: {' | '.join(f'call_{i}' for i in range(len(tools)))}")
        match self.format:
            case ToolFormat.HERMES:
                first = f'"\\n" call "\\n" {self._marker("</tool_call>")}'
                following = f'"\\n" {self._begin} {first}'
            case ToolFormat.MISTRAL if "[ARGS]" in self.added_tokens:
                first, following = "call", f"{self._begin} call"
            case ToolFormat.MISTRAL:
                following = '(", " call)*' if parallel else ""
                return [f'calls: " [" call {following} "]"', *rules]
            case ToolFormat.LLAMA:
                first, following = "call", f"{_BETWEEN_BARE_CALLS[self.format]} call"
        return [f"calls: {first} ({following})*" if parallel else f"calls: {first}", *rules]

    def _call(self, name: str, arguments: str) -> str:
        if self.format is ToolFormat.MISTRAL and "[ARGS]" in self.added_tokens:
            return f"{json.dumps(name)} {self._marker('[ARGS]')} {arguments}"
        return f'{json.dumps(self._head(name))} {arguments} "}}"'

    def _head(self, name: str) -> str:
        """What a call in JSON begins with."""
        key = "parameters" if self.format is ToolFormat.LLAMA else "arguments"
        return f'{{"name": {json.dumps(name)}, "{key}": '

    @property
    def _has_bare_calls(self) -> bool:
        return self.format in _BETWEEN_BARE_CALLS

    def _more_calls(self, *, parallel: bool) -> str:
        return f"({_BETWEEN_BARE_CALLS[self.format]} call)*" if parallel else ""

    def _free_text(self, tools: Tools, *, parallel: bool, lenient: bool) -> list[str]:
        """Rules for `text` without calls, and for the calls that may begin in the midst of an answer."""
        begin = MARKERS[self.format][0]
        # Marks in a text, as those around a model's thoughts; but not the markers of calls. What ends words is a mark,
        # never the beginning of a call.
        marks = ",".join(
            str(token_id)
            for token, token_id in self.added_tokens.items()
            if is_marker(token) and token_id not in self.control_ids and token not in MARKERS[self.format]
        )
        lead = f"(FIRST? <[{marks}]> (WORDS? <[{marks}]>)*)?" if marks else ""
        text = f"FIRST? (<[{marks}]> WORDS?)*" if marks else "FIRST?"
        rules, unlike = [f"text: {text}"], []
        if begin in self.added_tokens:
            rules.append(f"opening: text {self._begin}")
        else:
            unlike.append(rf"(.|\n)*{literal(begin)}")
            rules += [f"opening: {lead} to_opening", f"to_opening[lazy]: /{unlike[0]}/"]
        bare = []
        if self._has_bare_calls:
            heads = [self._loose_head(tool["function"]["name"]) for tool in tools]
            bare = [f"({'|'.join(heads)})"]
            unlike.append(_FENCED + bare[0])
            rules += self._unmarked_calls(tools, heads, lead, parallel=parallel, lenient=lenient)
        return [*rules, f"FIRST: {_words_unlike([*bare, *unlike])}", f"WORDS: {_words_unlike(unlike)}"]

    def _unmarked_calls(
        self, tools: Tools, heads: Sequence[str], lead: str, *, parallel: bool, lenient: bool
    ) -> list[str]:
        """Rules for `bare` calls, which are the whole answer, and `fenced` ones; `lead` is what ends with a mark."""
        rules = [r"BLANKS: /[ \t\r\n]{1,32}/"]
        for i, (tool, head) in enumerate(zip(tools, heads, strict=True)):
            rules += [f"head_{i}[lazy]: /{head}/", f"fenced_head_{i}[lazy]: /{_FENCED}{head}/"]
            rules.append(f"loose_{i}: %json {json_rule(parameters(tool), lenient=lenient, style=LOOSE_STYLE)}")
        first = [f'head_{i} BLANKS? loose_{i} BLANKS? "}}"' for i in range(len(tools))]
        calls = f"({' | '.join(first)})"
        fenced = f"({' | '.join('fenced_' + call for call in first)})"
        between = 'BLANKS? ";" ' if self.format is ToolFormat.LLAMA else ""  # a head begins with blanks
        more = f"({between}{calls})*" if parallel else ""
        return [*rules, f"bare: {calls} {more} BLANKS?", f'fenced: {lead} {fenced} {more} BLANKS? "```"']

    def _loose_head(self, name: str) -> str:
        """A pattern of what a call in JSON begins with, blanks wherever a model likes them."""
        key = "parameters" if self.format is ToolFormat.LLAMA else "arguments"
        parts = ["", literal("{"), '"name"', ":", literal(json.dumps(name)), ",", json.dumps(key), ":"]
        return r"[ \t\r\n]*".join(parts)


def _words_unlike(patterns: Sequence[str]) -> str:
    """A terminal of text that comes to none of `patterns`."""
    return f"/(.|\\n)+/ & ~/({'|'.join(patterns)})(.|\\n)*/" if patterns else "/(.|\\n)+/"
