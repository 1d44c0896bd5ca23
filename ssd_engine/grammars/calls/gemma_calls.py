"""The grammar of FunctionGemma's and Gemma 4's calls: like JSON, with bare names and marks around text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ssd_engine.answers.answer_format import Tools
from ssd_engine.answers.formats.call_format import CallFormat
from ssd_engine.answers.formats.typed_values import may_be_text
from ssd_engine.grammars.calls.call_grammar import CallGrammar, repeated
from ssd_engine.grammars.calls.parameters import alternatives, parameters, separated, with_definitions
from ssd_engine.grammars.json_schema import json_rule
from ssd_engine.grammars.lark import literal

_MOST_LEVELS = 4
"""Levels of objects and lists down to which a schema is followed: one that refers to itself has no end."""


class GemmaGrammar(CallGrammar):
    """`call:name{key:value,...}`."""

    def __init__(self, format: CallFormat, added_tokens: Mapping[str, int]) -> None:
        super().__init__(format, added_tokens)
        [self._quote] = format.further
        self._closing = format.closings[0]

    def rules(self, tools: Tools, *, parallel: bool, lenient: bool) -> list[str]:
        """Those of calls, and the rules of any value."""
        quote = self.marker(self._quote)
        is_token = self._quote in self.added_tokens  # then no text holds it
        text = r"QUOTED: /(.|\n)+/" if is_token else rf"quoted[lazy]: /(.|\n)*{literal(self._quote)}/"
        plain = f"plain: %json {json_rule({'type': ['number', 'boolean', 'null']}, lenient=True)}"
        return [
            *super().rules(tools, parallel=parallel, lenient=lenient),
            text,
            f"quoted_text: {quote} {f'QUOTED? {quote}' if is_token else 'quoted'}",
            plain,
            'any_value: quoted_text | plain | "[" (any_value ("," any_value)*)? "]" | any_object',
            'any_object: "{" any_members "}"',
            'any_members: (any_member ("," any_member)*)?',
            r"any_member: /[A-Za-z_]\w*:/ any_value",
        ]

    def calls(self, *, parallel: bool) -> str:
        """Each in markup of its own."""
        first = f"call {self.marker(self._closing)}"
        return repeated(first, f"{self.begin} {first}", parallel=parallel)

    def call(self, name: str, arguments: str) -> str:
        """The name, and the arguments in braces."""
        return f'{json.dumps(f"call:{name}{{")} {arguments} "}}"'

    def arguments(self, rule: str, schema: Mapping[str, Any], *, lenient: bool) -> list[str]:
        """`key:value`, in the schema's order."""
        return self._members(rule, schema, schema, 0, lenient=lenient)

    def _members(
        self, rule: str, schema: Mapping[str, Any], root: Mapping[str, Any], level: int, *, lenient: bool
    ) -> list[str]:
        named = parameters(schema)
        if named is None or level == _MOST_LEVELS:
            return [f"{rule}: any_members"]
        items, rules = [], []
        for i, each in enumerate(named):
            items.append((f"{json.dumps(f'{each.name}:')} {rule}_{i}", each.is_required))
            rules += self._value(f"{rule}_{i}", each.schema, root, level + 1, lenient=lenient)
        return [*separated(rule, items, '","'), *rules]

    def _value(self, rule: str, schema: Any, root: Mapping[str, Any], level: int, *, lenient: bool) -> list[str]:
        """The rule of a value, and those that it needs."""
        written, rules = [], []
        for i, each in enumerate(alternatives(schema, root)):
            text, more = self._alternative(f"{rule}_{i}", each, root, level, lenient=lenient)
            written.append(text)
            rules += more
        return [f"{rule}: {' | '.join(written) or 'any_value'}", *rules]

    def _alternative(
        self, rule: str, schema: Any, root: Mapping[str, Any], level: int, *, lenient: bool
    ) -> tuple[str, list[str]]:
        quote = self.marker(self._quote)
        match schema:
            case {"enum": [*values]} if all(isinstance(value, str) for value in values):
                return " | ".join(f"{quote} {json.dumps(value)} {quote}" for value in values), []
            case {"const": str() as value}:
                return f"{quote} {json.dumps(value)} {quote}", []
            case {"type": "string"}:
                return "quoted_text", []
            case {"type": "object"} | {"properties": _}:
                return f'"{{" {rule} "}}"', self._members(rule, schema, root, level, lenient=lenient)
            case {"type": "array"} | {"items": _}:
                return self._list(rule, schema, root, level, lenient=lenient)
        if may_be_text(schema, root):
            return "any_value", []
        return rule, [f"{rule}: %json {json_rule(with_definitions(schema, root), lenient=lenient)}"]

    def _list(
        self, rule: str, schema: Mapping[str, Any], root: Mapping[str, Any], level: int, *, lenient: bool
    ) -> tuple[str, list[str]]:
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if not isinstance(least, int) or not isinstance(most, int | None):
            least, most = 0, None
        if level >= _MOST_LEVELS:
            rules = [f"{rule}: any_value"]
        else:
            rules = self._value(rule, schema.get("items"), root, level + 1, lenient=lenient)
        if most == 0:
            return '"[" "]"', []
        rest = f'("," {rule}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}'
        items = f"{rule} {rest}"
        return f'"[" {items if least else f"({items})?"} "]"', rules
