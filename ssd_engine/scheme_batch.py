"""The scheme control of many sequences at once: `SchemeController`'s rule over rows of one tensor, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssd_engine.config import SSDConfig
from ssd_engine.scheme import SchemeController

_SETTINGS = (
    "alpha_intersection",
    "alpha_union",
    "bin_size",
    "match_threshold",
    "threshold_decay",
    "alpha_decay",
    "alpha_intersection_min",
)
_COLUMNS = ("is_union", "threshold", "alpha", "matches", "entries", *_SETTINGS)
"""What makes up a row, in float64 as `SchemeController` reckons, so that both decide alike to the last bit."""


class SchemeBatch:
    """R sequences' match-ratio state machines; they start in Intersection."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        """[R, columns] float64: state and settings, which `record` changes in place."""

    @classmethod
    def of(cls, configs: Sequence[SSDConfig], device: torch.device) -> SchemeBatch:
        """Sequences that are about to start."""
        rows = []
        for config in configs:
            start = SchemeController(config)
            settings = [float(getattr(config, name)) for name in _SETTINGS]
            rows.append([0.0, start.threshold, start.alpha, 0.0, 0.0, *settings])
        return cls(torch.tensor(rows, dtype=torch.float64, device=device).view(-1, len(_COLUMNS)))

    @property
    def is_union(self) -> Tensor:
        """[R] bool: whether Union holds at the next position."""
        return self._get("is_union") > 0

    @property
    def alpha_union(self) -> Tensor:
        """[R] float32 weight of the draft under Union."""
        return self._get("alpha_union").float()

    @property
    def alpha_intersection(self) -> Tensor:
        """[R] float32 weight of the draft under Intersection, at the next position."""
        return self._get("alpha").float()

    def record(self, matched: Tensor, counts: Tensor) -> None:
        """Enter one chosen token of each sequence that `counts` [R] bool; `matched` is [R] bool."""
        matches = self._get("matches") + (matched & counts)
        entries = self._get("entries") + counts
        is_complete = counts & (entries >= self._get("bin_size"))
        was_union, threshold = self.is_union, self._get("threshold")
        becomes_union = matches / entries.clamp_min(1) < threshold
        switches = is_complete & (becomes_union != was_union)
        decayed_alpha = torch.maximum(
            self._get("alpha") - self._get("alpha_decay"), self._get("alpha_intersection_min")
        )
        decayed_threshold = (threshold - self._get("threshold_decay")).clamp_min(0.0)
        keeps = is_complete & ~switches
        alpha = torch.where(keeps & ~was_union, decayed_alpha, self._get("alpha"))
        self._set("alpha", torch.where(switches, self._get("alpha_intersection"), alpha))
        threshold = torch.where(keeps, decayed_threshold, threshold)
        self._set("threshold", torch.where(switches, self._get("match_threshold"), threshold))
        self._set("is_union", torch.where(is_complete, becomes_union, was_union))
        self._set("matches", torch.where(is_complete, 0.0, matches))
        self._set("entries", torch.where(is_complete, 0.0, entries))

    def _get(self, name: str) -> Tensor:
        return self.rows[:, _COLUMNS.index(name)]

    def _set(self, name: str, values: Tensor) -> None:
        self.rows[:, _COLUMNS.index(name)] = values.double()
