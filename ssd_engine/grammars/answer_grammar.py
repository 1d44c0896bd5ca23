"""What an answer may be, as a grammar: what the request asks for, tool calls in the model's own format, or text.

The grammars are written in llguidance's dialect of Lark, where `<[id]>` is a token by its id.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ssd_engine.answers.answer_format import ReasoningStage, Tools
from ssd_engine.answers.reasoning import ReasoningFormat
from ssd_engine.answers.tool_formats import MARKERS, ToolFormat
from ssd_engine.config import GenerationParams
from ssd_engine.grammars.calls.call_grammar import CallGrammar
from ssd_engine.grammars.calls.registry import call_grammar
from ssd_engine.grammars.guide import is_marker
from ssd_engine.grammars.lark import answer_rule, grammar_source, literal, marker, words_unlike


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

    def source(
        self, params: GenerationParams, tools: Tools, stage: ReasoningStage = "over", *, has_result: bool = False
    ) -> str | None:
        """The grammar of an answer to a request with these tools on offer; None where any text will do.

        Args:
            params: what the request asks for.
            tools: the tools on offer.
            stage: how far the reasoning is as the answer begins.
            has_result: whether the conversation ends with a tool's result. Beside a schema a call then needs its
                markup: small models that like to leave it out write the call again that was just answered, without end.
        """
        is_called = bool(tools) and params.tool_choice != "auto"
        may_call = is_called or (bool(tools) and (params.strict is not False or params.grammar is not None))
        if not may_call and params.grammar is None:
            return None
        rules: list[str] = []
        written = call_grammar(self.format, self.added_tokens)
        parallel, lenient = params.parallel_tool_calls, not params.strict
        is_answered = has_result and not is_called and written.has_markup
        bare = "" if is_answered else written.bare(parallel=parallel)
        calls = " | ".join(filter(None, [f"{written.begin} calls" if written.has_markup else "", bare]))
        if may_call:
            rules += written.rules(tools, parallel=parallel, lenient=lenient)
        if is_called:
            start = calls
        elif params.grammar is not None:
            start = f"answer | {calls}" if may_call else "answer"
            rules.append(f"answer: {answer_rule(params.grammar)}")
        else:
            start, free = self._free(written, tools, parallel=parallel, lenient=lenient)
            rules += free
        if self.reasoning is not None and stage != "over":
            start = f"reasoning{'' if stage == 'open' else '?'} ({start})"
            rules += self._reasoning(self.reasoning, stage)
        return grammar_source(start, rules, params.grammar)

    def _reasoning(self, format: ReasoningFormat, stage: ReasoningStage) -> list[str]:
        """Rules for `reasoning` to the tag that closes it, whatever it says, and the blanks behind it."""
        opening, closing = (marker(tag, self.added_tokens) for tag in format.tags)
        begin = "" if stage == "open" else f"{opening} "
        if closing.startswith("<["):
            others = ",".join(
                str(token_id)
                for token, token_id in self.added_tokens.items()
                if token_id not in self.control_ids and token != format.tags[1]
            )
            body = f"(THOUGHTS | <[{others}]>)* {closing}" if others else f"THOUGHTS? {closing}"
            rules = [r"THOUGHTS: /(.|\n)+/"]
        else:
            body, rules = "to_closing", [rf"to_closing[lazy]: /(.|\n)*{literal(format.tags[1])}/"]
        return [f"reasoning: {begin}{body} GAP?", r"GAP: /[ \t\r\n]{1,8}/", *rules]

    def _free(self, written: CallGrammar, tools: Tools, *, parallel: bool, lenient: bool) -> tuple[str, list[str]]:
        """What an answer is that may call, and the rules of text without calls and of calls in the midst of it."""
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
