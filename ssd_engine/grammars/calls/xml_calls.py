"""The grammar of Qwen3-Coder's calls: a tag for each argument, and text between the tags."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ssd_engine.answers.answer_format import Tools
from ssd_engine.answers.formats.typed_values import may_be_text
from ssd_engine.errors import InvalidRequestError
from ssd_engine.grammars.calls.call_grammar import CallGrammar, repeated
from ssd_engine.grammars.calls.parameters import alternatives, parameters, with_definitions
from ssd_engine.grammars.json_schema import json_rule, warn_of

_ANY = r"(/<parameter=[^<>\n]+>\n/ xml_text)*"
_LINE = "\n"
_NOTHING = '""'
_CONSTRAINTS = ("pattern", "minLength", "maxLength", "format")
"""Keywords for text, which is written as it is here, not as JSON."""


class XmlGrammar(CallGrammar):
    """`<function=name>`, and a tag and a value for each argument."""

    def rules(self, tools: Tools, *, parallel: bool, lenient: bool) -> list[str]:
        """Those of calls, and the rule of any text as a value."""
        text = r"xml_text[lazy]: /(.|\n)*\n<\/parameter>\n/"
        return [*super().rules(tools, parallel=parallel, lenient=lenient), text]

    def calls(self, *, parallel: bool) -> str:
        """On lines of their own."""
        first = f'"\\n" call "\\n" {self.marker("</tool_call>")}'
        return repeated(first, f'"\\n" {self.begin} {first}', parallel=parallel)

    def call(self, name: str, arguments: str) -> str:
        """The tag of the function around its arguments."""
        return f'{json.dumps(f"<function={name}>{_LINE}")} {arguments} "</function>"'

    def arguments(self, rule: str, schema: Mapping[str, Any], *, lenient: bool) -> list[str]:
        """One behind the other, in the schema's order."""
        named = parameters(schema)
        if named is None:
            return [f"{rule}: {_ANY}"]
        items, rules = [], []
        for i, each in enumerate(named):
            tag = json.dumps(f"<parameter={each.name}>\n")
            items.append(f"({tag} {rule}_{i}){'' if each.is_required else '?'}")
            rules += self._value(f"{rule}_{i}", each.schema, schema, lenient=lenient)
        return [f"{rule}: {' '.join(items) or _NOTHING}", *rules]

    def _value(self, rule: str, schema: Any, root: Mapping[str, Any], *, lenient: bool) -> list[str]:
        """The rule of a value and the tag that ends it."""
        written, rules = [], []
        for i, each in enumerate(alternatives(schema, root)):
            choices = _choices(each)
            if choices:
                written += [json.dumps(f"{choice}\n</parameter>\n") for choice in choices]
            elif may_be_text(each, root):
                _require_plain(each, lenient=lenient)
                return [f"{rule}: xml_text"]
            else:
                rules.append(f"{rule}_{i}: %json {json_rule(with_definitions(each, root), lenient=lenient)}")
                written.append(f'{rule}_{i} "\\n</parameter>\\n"')
        return [f"{rule}: {' | '.join(written)}", *rules]


def _choices(schema: Any) -> list[str]:
    """The texts that a value may be, where a schema lists them all."""
    values = schema.get("enum", [schema["const"]] if "const" in schema else []) if isinstance(schema, Mapping) else []
    return values if isinstance(values, list) and all(isinstance(value, str) for value in values) else []


def _require_plain(schema: Any, *, lenient: bool) -> None:
    """Say that what a schema asks of a text is not enforced, which is an error where nothing is passed over."""
    for keyword in _CONSTRAINTS:
        if isinstance(schema, Mapping) and keyword in schema:
            if not lenient:
                raise InvalidRequestError(
                    f"the schema's {keyword}={schema[keyword]!r} cannot be enforced: this model's format writes text "
                    "without quotes; leave it out, or ask without strict=True"
                )
            warn_of(f"{keyword} {schema[keyword]!r}")
