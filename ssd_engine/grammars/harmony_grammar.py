"""What an answer in harmony, the format of gpt-oss, may be, as a grammar; see `ssd_engine.answers.harmony`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from ssd_engine.answers.answer_format import ReasoningStage, Tools
from ssd_engine.config import GenerationParams
from ssd_engine.grammars.calls.call_grammar import parameters_of
from ssd_engine.grammars.json_schema import json_rule
from ssd_engine.grammars.lark import answer_rule, grammar_source, literal, marker


@dataclass(frozen=True)
class HarmonyGrammar:
    """Writes grammars for one model's answers. Where the model may choose between text and calls, it is not guided."""

    added_tokens: Mapping[str, int]
    """Ids of the tokens that the tokenizer's vocabulary was extended by."""

    def source(
        self, params: GenerationParams, tools: Tools, stage: ReasoningStage = "over", *, has_result: bool = False
    ) -> str | None:
        """The grammar of an answer to a request with these tools on offer; None where any text will do.

        Calls always have their markup, whatever the conversation ends with. An answer that goes on from a
        text (`stage` "over") has no headers of its own.
        """
        must_call = bool(tools) and params.tool_choice != "auto"
        if not must_call and params.grammar is None:
            return None
        rules: list[str] = []
        if tools:
            for i, tool in enumerate(tools):
                rules.append(f"arguments_{i}: %json {json_rule(parameters_of(tool), lenient=not params.strict)}")
            calls = " | ".join(
                f"{self._header(tool['function']['name'])} arguments_{i}" for i, tool in enumerate(tools)
            )
            rules.append(f"call: {calls}")
        start = "call"
        if not must_call and params.grammar is not None:
            rules.append(f"answer: {answer_rule(params.grammar)}")
            text = f'{self._marker("<|channel|>")} "final" {self._marker("<|message|>")} answer'
            start = "answer" if stage == "over" else f"{text} | call" if tools else text
        if stage != "over":
            start = f"reasoning? ({start})"
            rules += self._reasoning()
        return grammar_source(start, rules, params.grammar)

    def _header(self, name: str) -> str:
        channel, constrain, message = map(self._marker, ("<|channel|>", "<|constrain|>", "<|message|>"))
        return f'{channel} {json.dumps(f"commentary to=functions.{name} ")} {constrain} "json" {message}'

    def _reasoning(self) -> list[str]:
        """Rules for a message in the channel of reasoning, and the beginning of the one behind it."""
        channel, message, end, start = map(self._marker, ("<|channel|>", "<|message|>", "<|end|>", "<|start|>"))
        if end.startswith("<["):
            body, rules = f"THOUGHTS? {end}", [r"THOUGHTS: /(.|\n)+/"]
        else:
            body, rules = "to_end", [rf"to_end[lazy]: /(.|\n)*{literal('<|end|>')}/"]
        return [f'reasoning: {channel} "analysis" {message} {body} {start} "assistant"', *rules]

    def _marker(self, token: str) -> str:
        return marker(token, self.added_tokens)
