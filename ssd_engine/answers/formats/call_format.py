"""One family's way of writing calls: markers, and the notation between them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ssd_engine.answers.blanks import BLANKS
from ssd_engine.answers.formats.body import Body


@dataclass(frozen=True)
class CallFormat:
    """How a family writes calls."""

    openings: tuple[str, ...]
    """What begins a call. The first one is the family's own; others are variants that its models write."""
    body: Body
    """How a call between the markers is read."""
    closings: tuple[str, ...] = ()
    """What ends the markup, in this order; models leave any of it out."""
    inner: str = ""
    """What may stand between the opening and a call."""
    further: tuple[str, ...] = ()
    """Control tokens within a call."""
    head: str = ""
    """What a call begins with whose opening is left out; `{}` stands for the name of an offered tool."""
    words: tuple[str, ...] = ()
    """Words before JSON that make it a call, where it calls offered tools."""
    separators: str = BLANKS + ",;]}"
    """Characters between two calls and before the closing. Stray ones are common."""
    reads_python: bool = False
    """Whether calls in Python count without markup too."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Token strings that decoding has to leave visible. The first one begins a call."""
        return (*self.openings, *self.closings, *self.further)

    @property
    def borders(self) -> tuple[str, ...]:
        """Markers that a broken call cannot go past."""
        return (*self.openings, *self.closings)

    def heads(self, tool_names: Collection[str]) -> tuple[str, ...]:
        """What calls of these tools begin with where the opening is left out."""
        return tuple(map(self.head.format, tool_names)) if self.head else ()
