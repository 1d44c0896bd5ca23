"""Calls as JSON objects: name and arguments in one, or arguments alone behind a name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from ssd_engine.answers.call_json import call_from, decode_object, is_open_string
from ssd_engine.answers.formats.body import BrokenCallError, ReadCall, Schemas, first_border


class JsonBody:
    """`{"name": ..., "arguments": {...}}`; `"parameters"` is understood too."""

    def begins(self, text: str, start: int) -> bool | None:
        """Where an object begins."""
        return text.startswith("{", start) if start < len(text) else None

    def read(self, text: str, schemas: Schemas) -> ReadCall:
        """The object that `text` begins with."""
        value, end = _object(text, 0, None)
        call = call_from(value)
        return ReadCall(end, None, call, value.get("name")) if isinstance(call, str) else ReadCall(end, call)


class NamedJsonBody(JsonBody):
    """A name and marks, and then `{...}`, its arguments; also a whole call in JSON, without the name."""

    def __init__(self, name_in: Callable[[str], str], borders: Sequence[str]) -> None:
        """`name_in`: the name in what stands before the arguments; `borders`: markers that no call goes past."""
        self._name_in = name_in
        self._borders = borders

    def read(self, text: str, schemas: Schemas) -> ReadCall:
        """The name, and the object behind it."""
        border = first_border(text, self._borders)
        start = text.find("{", 0, border if border >= 0 else None)
        if start <= 0:
            return super().read(text, schemas)
        name = self._name_in(text[:start])
        value, end = _object(text, start, name)
        return ReadCall.of(name, value, end)


def _object(text: str, start: int, name: str | None) -> tuple[dict[str, Any], int]:
    try:
        return decode_object(text, start)
    except json.JSONDecodeError as error:
        raise BrokenCallError(str(error), error.pos, is_open=is_open_string(error), name=name) from error
