"""What an answer may be, as a grammar: what the request asks for, tool calls in the model's own format, or text.

The grammars are written in llguidance's dialect of Lark, where `<[id]>` is a token by its id.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ssd_engine.answers.tool_formats import MARKERS, ToolFormat
from ssd_engine.config import GenerationParams, Grammar
from ssd_engine.grammars.calls.call_grammar import CallGrammar, Tools, parameters_of
from ssd_engine.grammars.calls.registry import call_grammar
from ssd_engine.grammars.guide import is_marker
from ssd_engine.grammars.json_schema import json_rule
from ssd_engine.grammars.lark import literal, regex, words_unlike


@dataclass(frozen=True)
class AnswerGrammar:
    """Writes grammars for one model's answers."""

    format: ToolFormat
    added_tokens: Mapping[str, int]
    """Ids of the tokens that the tokenizer's vocabulary was extended by."""
    control_ids: Collection[int]
    """Those of them that are no part of any text."""

    def source(self, params: GenerationParams, tools: Tools) -> str | None:
        """The grammar of an answer to a request with these tools on offer; None where any text will do."""
        is_called = bool(tools) and params.tool_choice != "auto"
        may_call = is_called or (bool(tools) and (params.strict is not False or params.grammar is not None))
        if not may_call and params.grammar is None:
            return None
        rules: list[str] = []
        written = self._calls
        parallel, lenient = params.parallel_tool_calls, not params.strict
        bare = written.bare(parallel=parallel)
        calls = f"{written.begin} calls" if written.has_markup else bare
        if may_call:
            rules += written.rules(tools, parallel=parallel, lenient=lenient)
        if is_called:
            start = f"{calls} | {bare}" if bare and written.has_markup else calls
        elif params.grammar is not None:
            start = f"answer | {calls}" if may_call else "answer"
            rules.append(f"answer: {_answer(params.grammar)}")
        else:
            start, free = self._free(tools, parallel=parallel, lenient=lenient)
            rules += free
        grammars = [{"lark_grammar": "\n".join([f"start: {start}", *rules])}]
        if params.grammar is not None and params.grammar.lark is not None:
            grammars.append({"name": "given", "lark_grammar": params.grammar.lark})
        return json.dumps({"grammars": grammars})

    def arguments_source(self, tool: Mapping[str, Any]) -> str:
        """The grammar of a tool's arguments alone, as far as its schema can be enforced."""
        rule = f"start: %json {json_rule(parameters_of(tool), lenient=True)}"
        return json.dumps({"grammars": [{"lark_grammar": rule}]})

    @property
    def _calls(self) -> CallGrammar:
        return call_grammar(self.format, self.added_tokens)

    def _free(self, tools: Tools, *, parallel: bool, lenient: bool) -> tuple[str, list[str]]:
        """What an answer is that may call, and the rules of text without calls and of calls in the midst of it."""
        written = self._calls
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
        if written.opening in self.added_tokens:
            rules.append(f"opening: text {written.begin}")
        else:
            unlike.append(rf"(.|\n)*{literal(written.opening)}")
            rules += [f"opening: {lead} to_opening", f"to_opening[lazy]: /{unlike[0]}/"]
        heads = written.heads(tools)
        unlike += written.unlike(heads)
        loose, loose_rules = written.loose(tools, lead, parallel=parallel, lenient=lenient)
        bare = [f"({'|'.join(heads)})"] if heads else []
        rules += [*loose_rules, f"FIRST: {words_unlike(*bare, *unlike)}", f"WORDS: {words_unlike(*unlike)}"]
        return " | ".join(["text", "opening calls", *loose]), rules


def _answer(grammar: Grammar) -> str:
    """The rule of what a request asks for."""
    if grammar.json_schema is not None:
        return f"%json {json_rule(grammar.json_schema, lenient=grammar.lenient)}"
    if grammar.regex is not None:
        return f"/{regex(grammar.regex)}/"
    return "@given"
