"""Pieces of grammars in llguidance's dialect of Lark."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from ssd_engine.config import Grammar
from ssd_engine.grammars.json_schema import json_rule


def grammar_source(start: str, rules: Sequence[str], given: Grammar | None = None) -> str:
    """A grammar as llguidance takes it; `given` is what the request asks for, which may be a grammar of its own."""
    grammars = [{"lark_grammar": "\n".join([f"start: {start}", *rules])}]
    if given is not None and given.lark is not None:
        grammars.append({"name": "given", "lark_grammar": given.lark})
    return json.dumps({"grammars": grammars})


def answer_rule(grammar: Grammar) -> str:
    """The rule of what a request asks for."""
    if grammar.json_schema is not None:
        return f"%json {json_rule(grammar.json_schema, lenient=grammar.lenient)}"
    if grammar.regex is not None:
        return f"/{regex(grammar.regex)}/"
    return "@given"


def marker(token: str, added_tokens: Mapping[str, int]) -> str:
    """A token by its id; its characters, where it is no token of its own."""
    return f"<[{added_tokens[token]}]>" if token in added_tokens else json.dumps(token)


def literal(text: str) -> str:
    """A pattern of this text alone."""
    return regex(re.escape(text))


def regex(pattern: str) -> str:
    """A pattern as it stands between slashes."""
    return re.sub(r"(\\.)|/", lambda match: match[1] or r"\/", pattern, flags=re.DOTALL).replace("\n", r"\n")


def words_unlike(*patterns: str) -> str:
    """A terminal of text that comes to none of `patterns`."""
    return f"/(.|\\n)+/ & ~/({'|'.join(patterns)})(.|\\n)*/" if patterns else "/(.|\\n)+/"
