"""One engine a process for each pair, whoever asks for it."""

from __future__ import annotations

from typing import Any

from ssd_engine.engine import SSDEngine
from ssd_engine.errors import InvalidRequestError
from ssd_engine.models.presets import default_preset
from ssd_engine.registry import Registry

_pairs: Registry[SSDEngine] = Registry()


def shared_engine(
    *, preset: str | None = None, target: str | None = None, draft: str | None = None, **options: Any
) -> SSDEngine:
    """The process's one engine for a pair: loaded at the first call, and again once it was closed.

    Args:
        preset: a named pair; without it and without `target` the default pair.
        target, draft: hub ids, folders or GGUF files, given together.
        options: `SSDEngine.from_pretrained`'s.
    """
    if (target is None) != (draft is None):
        raise InvalidRequestError(f"target={target!r} and draft={draft!r}: give both models of the pair, or neither")
    if preset is not None and target is not None:
        raise InvalidRequestError(f"preset={preset!r} and target={target!r} both name a pair; give one of them")
    preset = None if target else preset or default_preset()
    # What is left to its default must not tell two callers of one pair apart.
    # (`is not False`: 0 equals False, and is no default.)
    options = {n: v for n, v in options.items() if v is not None and v is not False and v != "auto"}
    key = repr((preset, target, draft, sorted(options.items(), key=lambda item: item[0])))

    def make() -> SSDEngine:
        if target is not None and draft is not None:
            return SSDEngine.from_pretrained(target, draft, **options)
        return SSDEngine.from_preset(preset, **options)

    return _pairs.get(key, make)
