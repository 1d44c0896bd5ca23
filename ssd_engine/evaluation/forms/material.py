"""Texts that a form needs and that the target makes, in memory, before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """The first tokens of an answer that complies: the opening's, carried on by the target where that is short."""

    request: str
    opening: str
    length: int
    """Tokens."""
    has_own_opening: bool
    """Whether the opening is the data's own, and not one of this package's."""


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A request in another language, as the target translates it."""

    request: str
    language: str


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The target's own answer to a harmless question."""

    question: str


Material = Beginning | Translation | Reply
