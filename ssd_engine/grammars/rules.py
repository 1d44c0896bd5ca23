"""What grammars of answers are made of: rules and terminals in llguidance's dialect of Lark."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ssd_engine.config import Grammar
from ssd_engine.grammars.json_schema import json_rule


def grammar_source(start: str, rules: Sequence[str], given: Grammar | None) -> str:
    """A grammar as llguidance takes it; `given` is what the request asks for, which may be a grammar of its own."""
    grammars = [{"lark_grammar": "\n".join([f"start: {start}", *rules])}]
    if given is not None and given.lark is not None:
        grammars.append({"name": "given", "lark_grammar": given.lark})
    return json.dumps({"grammars": grammars})


def arguments_source(tool: Mapping[str, Any]) -> str:
    """The grammar of a tool's arguments alone, as far as its schema can be enforced."""
    return grammar_source(f"%json {json_rule(parameters(tool), lenient=True)}", (), None)


def marker(token: str, added_tokens: Mapping[str, int]) -> str:
    """A control token by its id, or the text that it is where the vocabulary has no token for it."""
    return f"<[{added_tokens[token]}]>" if token in added_tokens else json.dumps(token)


def parameters(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a tool's arguments."""
    schema: Mapping[str, Any] = tool["function"].get("parameters") or {"type": "object", "properties": {}}
    return schema


def answer_rule(grammar: Grammar) -> str:
    """The rule of what a request asks for."""
    if grammar.json_schema is not None:
        return f"%json {json_rule(grammar.json_schema, lenient=grammar.lenient)}"
    if grammar.regex is not None:
        return f"/{_between_slashes(grammar.regex)}/"
    return "@given"


def literal(text: str) -> str:
    """A pattern of this text alone."""
    return _between_slashes(re.escape(text))


def _between_slashes(pattern: str) -> str:
    """A pattern as it stands between slashes."""
    return re.sub(r"(\\.)|/", lambda match: match[1] or r"\/", pattern, flags=re.DOTALL).replace("\n", r"\n")
