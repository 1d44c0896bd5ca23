"""The grammars of calls in Python: `name(key=value, ...)`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ssd_engine.answers.answer_format import Tools
from ssd_engine.grammars.calls.call_grammar import CallGrammar, repeated
from ssd_engine.grammars.calls.parameters import alternatives, parameters, separated, with_definitions
from ssd_engine.grammars.json_schema import json_rule
from ssd_engine.grammars.lark import literal

_COMMA = '", "'
_LINE = r'"\n"'
_WORDS = {"boolean": '"True" | "False"', "null": '"None"'}
"""Literals that differ from JSON's. Within lists and objects JSON's are written, and read."""


class PythonGrammar(CallGrammar):
    """Calls as Python writes them, with JSON for what is the same in both."""

    def call(self, name: str, arguments: str) -> str:
        """The name, and the arguments in parentheses."""
        return f'{json.dumps(f"{name}(")} {arguments} ")"'

    def arguments(self, rule: str, schema: Mapping[str, Any], *, lenient: bool) -> list[str]:
        """`key=value`, in the schema's order."""
        named = parameters(schema)
        if named is None:
            any_value = f"{rule}_any: %json {json_rule({}, lenient=lenient)}"
            pair = rf"/[A-Za-z_]\w*=/ {rule}_any"
            return [f"{rule}: ({pair} ({_COMMA} {pair})*)?", any_value]
        items, rules = [], []
        for i, each in enumerate(named):
            items.append((f"{json.dumps(f'{each.name}=')} {rule}_{i}", each.is_required))
            rules += self._value(f"{rule}_{i}", each.schema, schema, lenient=lenient)
        return [*separated(rule, items, _COMMA), *rules]

    def _value(self, rule: str, schema: Any, root: Mapping[str, Any], *, lenient: bool) -> list[str]:
        written, rules = [], []
        for i, each in enumerate(alternatives(schema, root)):
            word = _WORDS.get(str(each.get("type"))) if isinstance(each, Mapping) and "enum" not in each else None
            if word is None:
                rules.append(f"{rule}_{i}: %json {json_rule(with_definitions(each, root), lenient=lenient)}")
            written.append(word or f"{rule}_{i}")
        return [f"{rule}: {' | '.join(written)}", *rules]


class PythonListGrammar(PythonGrammar):
    """A list of calls, without any markup or between Llama 4's markers."""

    @property
    def has_markup(self) -> bool:
        """Whether the tokenizer has the markers; Llama 3.2's has not."""
        return self.opening in self.added_tokens

    def calls(self, *, parallel: bool) -> str:
        """A list and the closing marker."""
        return f"{self._list(parallel=parallel)} {self.marker('<|python_end|>')}"

    def bare(self, *, parallel: bool) -> str:
        """The list alone."""
        return self._list(parallel=parallel)

    def heads(self, tools: Tools) -> list[str]:
        """A bracket and a name."""
        blanks = r"[ \t\r\n]*"
        return [rf"{blanks}\[{blanks}{literal(tool['function']['name'])}\(" for tool in tools]

    def loose(self, tools: Tools, lead: str, *, parallel: bool, lenient: bool) -> tuple[list[str], list[str]]:
        """A list that is the whole answer."""
        rules = [r"BLANKS: /[ \t\r\n]{1,32}/"]
        rules += [f"head_{i}[lazy]: /{head}/" for i, head in enumerate(self.heads(tools))]
        first = " | ".join(f'head_{i} arguments_{i} ")"' for i in range(len(tools)))
        more = '("," BLANKS? call)*' if parallel else ""
        return ["bare"], [*rules, f'bare: ({first}) {more} BLANKS? "]" BLANKS?']

    def _list(self, *, parallel: bool) -> str:
        return f'"[" {repeated("call", f"{_COMMA} call", parallel=parallel)} "]"'


class ToolCodeGrammar(PythonGrammar):
    """Calls in a fence, one a line."""

    def calls(self, *, parallel: bool) -> str:
        """The rest of the fence."""
        more = repeated("call", f"{_LINE} call", parallel=parallel)
        return f'{_LINE} {more} "\\n```"'
