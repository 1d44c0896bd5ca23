"""What stands between a call's markers: notations, each of which tells where a call begins and reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ssd_engine.answers.call_json import call_from
from ssd_engine.answers.result import ToolCall

Schemas = Mapping[str, Mapping[str, Any]]
"""JSON Schemas of the arguments of the offered tools, by the tools' names."""


class BrokenCallError(ValueError):
    """Text that is no whole call.

    Attributes:
        at: the place of the fault. A marker from there on ends the call.
        is_open: whether the text ended within a value, which may hold markers.
        name: the tool's name, where it is known.
    """

    def __init__(self, reason: str, at: int, *, is_open: bool = False, name: str | None = None) -> None:
        super().__init__(reason)
        self.at = at
        self.is_open = is_open
        self.name = name


@dataclass(frozen=True)
class ReadCall:
    """A call that came to its end, at `end` of the text: a valid one, or one that is wrong as `error` says."""

    end: int
    call: ToolCall | None
    error: str = ""
    name: Any = None

    @classmethod
    def of(cls, name: Any, arguments: Any, end: int) -> ReadCall:
        """A call with these arguments, whatever a model made of them."""
        call = call_from({"name": name, "arguments": arguments})
        return cls(end, None, call, name) if isinstance(call, str) else cls(end, call)


class Body(Protocol):
    """A notation of calls."""

    def begins(self, text: str, start: int) -> bool | None:
        """Whether a call begins at `start`; None where the text ends before that is known."""

    def read(self, text: str, schemas: Schemas) -> ReadCall:
        """The call that `text` begins with.

        More text behind a call changes nothing of it. Raises `BrokenCallError` where there is none, or none yet.
        """


class FirstOf:
    """Several notations: the first of which a call begins; the last where that is none."""

    def __init__(self, *bodies: Body) -> None:
        self._bodies = bodies

    def begins(self, text: str, start: int) -> bool | None:
        """As the first that says yes; None where one may yet."""
        found = [body.begins(text, start) for body in self._bodies]
        return True if True in found else None if None in found else False

    def read(self, text: str, schemas: Schemas) -> ReadCall:
        """As the notation that begins here reads it."""
        body = next((body for body in self._bodies if body.begins(text, 0)), self._bodies[-1])
        return body.read(text, schemas)


def begins_with(text: str, start: int, tag: str) -> bool | None:
    """Whether `tag` stands at `start`; None where the text ends within it."""
    found = text[start : start + len(tag)]
    return True if found == tag else None if tag.startswith(found) else False


def first_border(text: str, borders: Sequence[str], start: int = 0) -> int:
    """Where the first of some markers stands; -1 where there is none."""
    return min((at for border in borders if (at := text.find(border, start)) >= 0), default=-1)
