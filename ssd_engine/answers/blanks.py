"""Blanks between the parts of a call."""

from __future__ import annotations

BLANKS = " \t\r\n"


def skip(text: str, start: int, characters: str) -> int:
    """The first place from `start` on that holds none of `characters`."""
    return len(text) - len(text[start:].lstrip(characters))
