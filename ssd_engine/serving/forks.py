"""Forks: in a child process no thread of the parent's goes on, and each scheduler has to know it."""

from __future__ import annotations

import os
import weakref
from typing import Any, Protocol


class HasWorker(Protocol):
    """What has a thread of its own."""

    def forget_worker(self) -> None:
        """Go on without the thread, in a child process."""


_owners: weakref.WeakSet[HasWorker] = weakref.WeakSet()
_left_behind: list[Any] = []


def after_fork(owner: HasWorker) -> None:
    """Have `owner` forget its worker in every child of this process."""
    _owners.add(owner)


def leave_behind(decoder: object) -> None:
    """Keep a parent's decoder for good: vLLM would end the parent's processes where one is collected in a child."""
    _left_behind.append(decoder)


def _forget_workers() -> None:
    for owner in list(_owners):
        owner.forget_worker()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)
