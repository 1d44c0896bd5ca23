"""Registry: engines that the whole process shares, by what they were made of."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from ssd_engine.engine import SSDEngine

E = TypeVar("E", bound=SSDEngine)


class Registry(Generic[E]):
    """One engine for each key, made at the first call, and again once it was closed."""

    def __init__(self) -> None:
        self._engines: dict[Hashable, E] = {}
        self._lock = threading.Lock()
        _registries.add(self)

    def get(self, key: Hashable, make: Callable[[], E]) -> E:
        """The engine of a key; others that want one wait while it is made."""
        with self._lock:
            engine = self._engines.get(key)
            if engine is None or engine.is_closed:
                engine = self._engines[key] = make()
            return engine

    def _renew_lock(self) -> None:
        """In a forked child: a thread that it does not have may hold the lock."""
        self._lock = threading.Lock()


_registries: weakref.WeakSet[Registry[Any]] = weakref.WeakSet()


def _renew_locks() -> None:
    for registry in list(_registries):
        registry._renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
