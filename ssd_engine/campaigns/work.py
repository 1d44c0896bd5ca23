"""How long work reports itself, and how many requests are answered at once meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Protocol, TypeVar

AT_ONCE = 16
"""Requests that are answered together."""
Item = TypeVar("Item")
Result = TypeVar("Result")


class Reporter(Protocol):
    """Where long work says how far it is."""

    def step(self, name: str, done: int, total: int) -> None:
        """So much of a step is done; a `total` of 0: how much there is cannot be known."""

    def note(self, text: str) -> None:
        """Something worth a line that stays."""


def answered(
    answer: Callable[[Item], Result], items: Sequence[Item], report: Reporter, name: str, at_once: int
) -> Iterator[tuple[Item, Result]]:
    """`answer` each item, `at_once` at a time, and give each with its result as soon as it is there.

    The first error ends the work: what has not begun is left, and what runs is waited for.
    """
    report.step(name, 0, len(items))
    with ThreadPoolExecutor(at_once) as callers:
        running = {callers.submit(answer, item): item for item in items}
        try:
            for done, future in enumerate(as_completed(running), 1):
                yield running[future], future.result()
                report.step(name, done, len(items))
        finally:
            for future in running:
                future.cancel()
