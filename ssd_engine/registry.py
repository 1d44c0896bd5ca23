"""Registry: engines that the whole process shares, by what they were made of."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from ssd_engine.engine import Engine
from ssd_engine.models.pair import PairSpec
from ssd_engine.models.presets import default_preset
from ssd_engine.pair_engine import SSDEngine

E = TypeVar("E", bound=Engine)


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


_pairs: Registry[SSDEngine] = Registry()


def shared_engine(spec: PairSpec) -> SSDEngine:
    """The process's one engine for a pair: loaded at the first call, and again once it was closed."""
    if spec.target is None and spec.preset is None:
        spec = spec.replaced(preset=default_preset())
    # What is left to its default must not tell two callers of one pair apart.
    # (`is not False`: 0 equals False, and is no default.)
    fields = [(n, v) for n in type(spec).model_fields if (v := getattr(spec, n)) is not None and v is not False]
    return _pairs.get(repr(fields), lambda: SSDEngine.from_spec(spec))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
