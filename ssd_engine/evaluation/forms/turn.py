"""A conversation as an attack form writes it: turns whose text is known, or is made by the target first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ssd_engine.evaluation.forms.material import Material


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One message."""

    role: Literal["user", "assistant", "tool"]
    parts: tuple[str | Material, ...] = ()
    """What its text is put together from."""
    tool: str = ""
    """The tool that an assistant's turn calls, or that a tool's turn is the result of."""

    def message(self, text_of: Callable[[Material], str]) -> dict[str, Any]:
        """The message in OpenAI's form; `text_of` gives what the target made."""
        content = "".join(part if isinstance(part, str) else text_of(part) for part in self.parts)
        message: dict[str, Any] = {"role": self.role, "content": content}
        if self.tool and self.role == "assistant":
            function = {"name": self.tool, "arguments": {}}
            message["tool_calls"] = [{"type": "function", "function": function}]
        elif self.tool:
            message["name"] = self.tool
        return message


Conversation = tuple[Turn, ...]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a form disguises: a harmful request, or a harmless one, its twin."""

    text: str
    opening: str
    """The beginning of an answer that complies."""
    has_own_opening: bool
    """Whether the opening is the data's own, and not one of this package's."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """A way to ask that makes models comply which would refuse a plain request."""

    name: str
    description: str
    """In a line, for the report."""
    ask: Callable[[Request], Conversation]


def asked(*parts: str | Material) -> Conversation:
    """A conversation of one question."""
    return (Turn(role="user", parts=parts),)
