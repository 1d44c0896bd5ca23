"""The rules of calls: name and arguments as JSON, and what the grammars of other notations have in common with that."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ssd_engine.answers.answer_format import Tools
from ssd_engine.answers.formats.call_format import CallFormat
from ssd_engine.grammars.json_schema import LOOSE_STYLE, json_rule
from ssd_engine.grammars.lark import grammar_source, literal, marker

_FENCED = r"(.|\n)*```(json)?\n"
"""What stands before a fenced call."""


class CallGrammar:
    """Writes the rules of calls as JSON objects: `calls`, which is what follows the opening, and `call`."""

    key = "arguments"
    """The member that holds the arguments."""

    def __init__(self, format: CallFormat, added_tokens: Mapping[str, int]) -> None:
        """`added_tokens`: ids of the tokens that the tokenizer's vocabulary was extended by."""
        self.opening = format.openings[0]
        self.added_tokens = added_tokens

    @property
    def begin(self) -> str:
        """What begins a call."""
        return self.marker(self.opening)

    @property
    def has_markup(self) -> bool:
        """Whether a call that has to come may come in markup."""
        return True

    def marker(self, token: str) -> str:
        """A token by its id; its characters, where it is no token of its own."""
        return marker(token, self.added_tokens)

    def rules(self, tools: Tools, *, parallel: bool, lenient: bool) -> list[str]:
        """Rules for `calls`, `call`, and each tool's `call_0`, `arguments_0` and so on."""
        rules = [f"calls: {self.calls(parallel=parallel)}"]
        rules.append(f"call: {' | '.join(f'call_{i}' for i in range(len(tools)))}")
        for i, tool in enumerate(tools):
            rules.append(f"call_{i}: {self.call(tool['function']['name'], f'arguments_{i}')}")
            rules += self.arguments(f"arguments_{i}", parameters_of(tool), lenient=lenient)
        return rules

    def calls(self, *, parallel: bool) -> str:
        """What follows the opening: one call, or more of them."""
        raise NotImplementedError

    def call(self, name: str, arguments: str) -> str:
        """One call; `arguments` is the rule of its arguments."""
        # Cut as llguidance cuts JSON: only so may a call and the object that a schema asks for begin alike.
        head = ("{", '"name"', ": ", json.dumps(name), ", ", json.dumps(self.key), ": ")
        return f'{" ".join(map(json.dumps, head))} {arguments} "}}"'

    def arguments(self, rule: str, schema: Mapping[str, Any], *, lenient: bool) -> list[str]:
        """The rule of a tool's arguments, and those that it needs."""
        return [f"{rule}: %json {json_rule(schema, lenient=lenient)}"]

    def bare(self, *, parallel: bool) -> str:
        """Calls without markup, which tool choices that ask for some are content with; "" where there are none."""
        return ""

    def heads(self, tools: Tools) -> list[str]:
        """Patterns of what the tools' calls begin with where a model writes them without markup of its own accord."""
        return []

    def loose(self, tools: Tools, lead: str, *, parallel: bool, lenient: bool) -> tuple[list[str], list[str]]:
        """What an answer is, each of it by a rule, that has such calls, and the rules.

        `lead` is a text that ends with a mark, such as one around a model's thoughts.
        """
        return [], []

    def unlike(self, heads: Sequence[str]) -> list[str]:
        """What in the midst of a text begins such calls."""
        return []


class BareJsonGrammar(CallGrammar):
    """Calls that are understood without any markup, too."""

    between = r'"\n"'
    """What stands between two calls without markup."""

    def bare(self, *, parallel: bool) -> str:
        """JSON objects."""
        more = f"({self.between} call)*" if parallel else ""
        # Many models leave the markup out; where they may, they know better when to stop.
        return f'call {more} "\\n"?'

    def heads(self, tools: Tools) -> list[str]:
        """Blanks stand wherever a model likes them."""
        return [self._loose_head(tool["function"]["name"]) for tool in tools]

    def unlike(self, heads: Sequence[str]) -> list[str]:
        """A fence and a call."""
        return [f"{_FENCED}({'|'.join(heads)})"]

    def loose(self, tools: Tools, lead: str, *, parallel: bool, lenient: bool) -> tuple[list[str], list[str]]:
        """`bare` calls, which are the whole answer, and `fenced` ones."""
        rules = [r"BLANKS: /[ \t\r\n]{1,32}/"]
        for i, (tool, head) in enumerate(zip(tools, self.heads(tools), strict=True)):
            rules += [f"head_{i}[lazy]: /{head}/", f"fenced_head_{i}[lazy]: /{_FENCED}{head}/"]
            rules.append(f"loose_{i}: %json {json_rule(parameters_of(tool), lenient=lenient, style=LOOSE_STYLE)}")
        first = [f'head_{i} BLANKS? loose_{i} BLANKS? "}}"' for i in range(len(tools))]
        calls = f"({' | '.join(first)})"
        fenced = f"({' | '.join('fenced_' + call for call in first)})"
        between = 'BLANKS? ";" ' if ";" in self.between else ""  # a head begins with blanks
        more = f"({between}{calls})*" if parallel else ""
        rules += [f"bare: {calls} {more} BLANKS?", f'fenced: {lead} {fenced} {more} BLANKS? "```"']
        return ["bare", "fenced+ text" if parallel else "fenced"], rules

    def _loose_head(self, name: str) -> str:
        parts = ["", literal("{"), '"name"', ":", literal(json.dumps(name)), ",", json.dumps(self.key), ":"]
        return r"[ \t\r\n]*".join(parts)


def parameters_of(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a tool's arguments."""
    schema: Mapping[str, Any] = tool["function"].get("parameters") or {"type": "object", "properties": {}}
    return schema


def arguments_source(tool: Mapping[str, Any]) -> str:
    """The grammar of a tool's arguments alone, as far as its schema can be enforced."""
    return grammar_source(f"%json {json_rule(parameters_of(tool), lenient=True)}", ())


def repeated(first: str, following: str, *, parallel: bool) -> str:
    """One call, and more of them where several are wanted."""
    return f"{first} ({following})*" if parallel else first
