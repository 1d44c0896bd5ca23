"""Calls as Python: `name(key=value, ...)` with literals, as Llama 4, Llama 3.2 and Gemma write them.

vLLM reads the same (tool_parsers/pythonic_tool_parser.py and llama4_pythonic_tool_parser.py).
"""

from __future__ import annotations

import ast
import json
import keyword
import re
from collections.abc import Sequence
from typing import Any

from ssd_engine.answers.formats.body import BrokenCallError, ReadCall, Schemas

_HEAD = re.compile(r"(?:print\s*\(\s*)?(?:default_api\s*\.\s*)?([\w.-]+)\s*\(")
"""What a call begins with: Gemma prints results, and knows functions as members of `default_api`."""
_PARTIAL_HEAD = re.compile(r"[\w.-]*\s*\Z")
_LONG = r"'''(?:[^\\]|\\.)*?'''|\"\"\"(?:[^\\]|\\.)*?\"\"\""
_SHORT = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_STRING = re.compile(rf"({_LONG})|({_SHORT})", re.DOTALL)
_KEYWORD = rf"(?<![\w.])({'|'.join(keyword.kwlist)})(?=\s*=(?!=))"
_NOT_PYTHON = re.compile(rf"{_STRING.pattern}|{_KEYWORD}", re.DOTALL)
_MARK = "keyword_"
"""What stands for a while before arguments that have the name of a keyword, `from` say."""
_UNKNOWN_ESCAPE = re.compile(r"\\(\\|(?![\n'\"abfnrtvxuUN0-7]))")
_OTHER_NAMES = {"true": True, "false": False, "null": None}
"""Literals of JSON, which models mix in."""


class PythonBody:
    """`name(key=value, ...)`."""

    def __init__(self, borders: Sequence[str]) -> None:
        """`borders`: markers that no call goes past, unless they stand within a string."""
        marks = "|".join(map(re.escape, borders))
        self._token = re.compile(
            rf"{_LONG}|(?P<open>'''|\"\"\")|{_SHORT}|(?P<quote>['\"])|[()\[\]{{}}]"
            + (f"|(?P<border>{marks})" * bool(marks)),
            re.DOTALL,
        )

    def begins(self, text: str, start: int) -> bool | None:
        """Where a name and a parenthesis stand."""
        return True if _HEAD.match(text, start) else None if _PARTIAL_HEAD.match(text, start) else False

    def read(self, text: str, schemas: Schemas) -> ReadCall:
        """The call that `text` begins with."""
        head = _HEAD.match(text)
        if head is None:
            raise BrokenCallError("Expecting a call, name(key=value, ...)", 0)
        end = self._end(text, head.end(), head[1])
        try:
            arguments = _arguments(text[head.end() : end - 1])
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            return ReadCall(end, None, f"the arguments of {head[1]!r} are no literals of Python: {error}", head[1])
        return ReadCall.of(head[1], arguments, end)

    def _end(self, text: str, start: int, name: str) -> int:
        """Where the parenthesis is closed that is open at `start`."""
        depth = 1
        for token in self._token.finditer(text, start):
            if token["open"] or token["quote"]:
                raise BrokenCallError("the answer ended within this call", len(text), is_open=True, name=name)
            if token.groupdict().get("border"):
                raise BrokenCallError("the call is not closed", token.start(), name=name)
            depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(token[0], 0)
            if depth == 0:
                return token.end()
        raise BrokenCallError("the answer ended within this call", len(text), name=name)


def _arguments(text: str) -> dict[str, Any]:
    call = ast.parse(f"_({_NOT_PYTHON.sub(_as_python, text).strip()}\n)", mode="eval").body
    if not isinstance(call, ast.Call):
        raise ValueError("they are not separated by commas")
    if call.args or any(each.arg is None for each in call.keywords):
        raise ValueError("some have no name; give all as name=value")
    arguments = {str(each.arg).removeprefix(_MARK): _value(each.value) for each in call.keywords}
    json.dumps(arguments, allow_nan=False, ensure_ascii=False).encode()
    return arguments


def _as_python(found: re.Match[str]) -> str:
    """A string with line breaks and backslashes escaped that models leave as they are; a keyword as another name."""
    if found[3] is not None:
        return _MARK + found[3]
    text = _UNKNOWN_ESCAPE.sub(r"\\\\", found[0])
    return text if found[1] is not None else text.replace("\r", "\\r").replace("\n", "\\n")


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=str() as text):
            return text.encode("utf-16", "surrogatepass").decode("utf-16")  # halves, escaped as in JSON
        case ast.Constant(value=None | bool() | int() | float() as value):
            return value
        case ast.Name(id=name) if name in _OTHER_NAMES:
            return _OTHER_NAMES[name]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {_key(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.UnaryOp(op=ast.UAdd(), operand=ast.Constant(value=int() | float() as number)):
            return number
    raise ValueError(f"{ast.unparse(node)[:40]!r} is none")


def _key(node: ast.expr | None) -> str:
    match node:
        case ast.Constant(value=str() as text):
            return text
    raise ValueError("the keys of a dictionary have to be text")
