"""What an answer may be, as a grammar: what the request asks for, tool calls in the model's own format, or text.

The grammars are written in llguidance's dialect of Lark, where `<[id]>` is a token by its id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssd_engine.config import GenerationParams, Grammar
from ssd_engine.grammar import is_marker
from ssd_engine.tool_calls import MARKERS, ToolFormat

Tools = Sequence[Mapping[str, Any]]

_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As `json.dumps` writes and models are used to; where no blanks are free, more tokens are forced."""

_BETWEEN_BARE_CALLS = {ToolFormat.HERMES: r'"\n"', ToolFormat.LLAMA: '"; "'}
"""Formats whose calls are understood without any markup, and what stands between two of these."""


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
        if may_call:
            rules += self._calls(tools, parallel=params.parallel_tool_calls, lenient=not params.strict)
        if is_called:
            # Many models leave the markup out; where they may, they know better when to stop.
            start = f"{self._begin} calls"
            if self.format in _BETWEEN_BARE_CALLS:
                start += " | bare_calls"
                following = f" ({_BETWEEN_BARE_CALLS[self.format]} call)*" if params.parallel_tool_calls else ""
                rules.append(f"bare_calls: call{following}")
        elif params.grammar is not None:
            start = f"answer | {self._begin} calls" if may_call else "answer"
            rules.append(f"answer: {_answer(params.grammar)}")
        else:
            start = "text | opening calls"
            rules += self._text_and_opening()
        grammars = [{"lark_grammar": "\n".join([f"start: {start}", *rules])}]
        if params.grammar is not None and params.grammar.lark is not None:
            grammars.append({"name": "given", "lark_grammar": params.grammar.lark})
        return json.dumps({"grammars": grammars})

    @property
    def _begin(self) -> str:
        return self._marker(MARKERS[self.format][0])

    def _marker(self, token: str) -> str:
        return f"<[{self.added_tokens[token]}]>" if token in self.added_tokens else json.dumps(token)

    def _calls(self, tools: Tools, *, parallel: bool, lenient: bool) -> list[str]:
        """Rules for `calls`: what follows the marker that begins the first call."""
        rules = []
        for i, tool in enumerate(tools):
            schema = tool["function"].get("parameters") or {"type": "object", "properties": {}}
            rules.append(f"arguments_{i}: %json {_json_rule(schema, lenient)}")
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
        key = "parameters" if self.format is ToolFormat.LLAMA else "arguments"
        head = f'{{"name": {json.dumps(name)}, "{key}": '
        return f'{json.dumps(head)} {arguments} "}}"'

    def _text_and_opening(self) -> list[str]:
        """Rules for `text` without calls, and for `opening`: text up to and with the marker of the first call."""
        begin = MARKERS[self.format][0]
        if begin not in self.added_tokens:
            return [f"opening[lazy]: /(.|\\n)*{_regex(re.escape(begin))}/", "text: /(.|\\n)*/"]
        # Marks in a text, as those around a model's thoughts; but not the markers of calls.
        marks = [
            str(token_id)
            for token, token_id in self.added_tokens.items()
            if is_marker(token) and token_id not in self.control_ids and token not in MARKERS[self.format]
        ]
        words = f"(WORDS | <[{','.join(marks)}]>)*" if marks else "WORDS?"
        return [f"opening: text {self._begin}", f"text: {words}", "WORDS: /(.|\\n)+/"]


def _answer(grammar: Grammar) -> str:
    """The rule of what a request asks for."""
    if grammar.json_schema is not None:
        return f"%json {_json_rule(grammar.json_schema, grammar.lenient)}"
    if grammar.regex is not None:
        return f"/{_regex(grammar.regex)}/"
    return "@given"


def _regex(pattern: str) -> str:
    """A pattern as it stands between slashes."""
    return re.sub(r"(\\.)|/", lambda match: match[1] or r"\/", pattern, flags=re.DOTALL).replace("\n", r"\n")


def _json_rule(schema: Mapping[str, Any], lenient: bool) -> str:
    options = {**_JSON_STYLE, "lenient": lenient, **schema.get("x-guidance", {})}
    # Where schemas are combined, what one does not name may be named by another.
    closed = schema if "allOf" in json.dumps(schema) else _closed(schema)
    return json.dumps({**closed, "x-guidance": options})


def _closed(schema: Any) -> Any:
    """A schema whose objects have no properties but those it names, unless it says that they may."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    closed = {key: _closed_keyword(key, value) for key, value in schema.items()}
    if "properties" in schema:
        closed.setdefault("additionalProperties", False)
    return closed


def _closed_keyword(key: str, value: Any) -> Any:
    if key in ("enum", "const", "default", "examples"):
        return value
    if key in ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"):
        return {name: _closed(schema) for name, schema in value.items()} if isinstance(value, Mapping) else value
    return _closed(value)
