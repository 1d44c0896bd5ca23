"""The scheme control of many sequences at once: `SchemeController`'s rule over rows of one tensor, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssd_engine.config import SSDConfig
from ssd_engine.rule.scheme import EXACT_BELOW, ROUNDING

_SETTINGS = (
    "alpha_intersection",
    "alpha_union",
    "bin_size",
    "match_threshold",
    "threshold_decay",
    "alpha_decay",
    "alpha_intersection_min",
)
_COLUMNS = ("is_union", "kept_bins", "matches", "entries", *_SETTINGS)
"""What makes up a row, in float64 as `SchemeController` reckons, so that both decide alike to the last bit."""


class SchemeBatch:
    """R sequences' match-ratio state machines; they start in Intersection."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        """[R, columns] float64: state and settings, which `record` changes in place."""

    @classmethod
    def of(cls, configs: Sequence[SSDConfig], device: torch.device) -> SchemeBatch:
        """Sequences that are about to start."""
        rows = [[0.0, 0.0, 0.0, 0.0, *(float(getattr(config, name)) for name in _SETTINGS)] for config in configs]
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
        # Under Union bins are kept too, but this weight begins anew after it.
        kept_bins = self._get("kept_bins").masked_fill(self.is_union, 0.0)
        least = self._get("alpha_intersection_min")
        return _decayed(self._get("alpha_intersection"), self._get("alpha_decay"), kept_bins, least).float()

    @property
    def threshold(self) -> Tensor:
        """[R] float64: what the match ratio of the bin under way will be compared with."""
        kept_bins = self._get("kept_bins")
        least = torch.zeros_like(kept_bins)
        return _decayed(self._get("match_threshold"), self._get("threshold_decay"), kept_bins, least)

    def record(self, matched: Tensor, counts: Tensor) -> None:
        """Enter one chosen token of each sequence that `counts` [R] bool; `matched` is [R] bool."""
        matches = self._get("matches") + (matched & counts)
        entries = self._get("entries") + counts
        is_complete = counts & (entries >= self._get("bin_size"))
        becomes_union = self.threshold - matches / entries.clamp_min(1) > ROUNDING
        kept_bins = torch.where(becomes_union != self.is_union, 0.0, self._get("kept_bins") + 1)
        self._set("kept_bins", torch.where(is_complete, kept_bins, self._get("kept_bins")))
        self._set("is_union", torch.where(is_complete, becomes_union, self.is_union))
        self._set("matches", torch.where(is_complete, 0.0, matches))
        self._set("entries", torch.where(is_complete, 0.0, entries))

    def _get(self, name: str) -> Tensor:
        return self.rows[:, _COLUMNS.index(name)]

    def _set(self, name: str, values: Tensor) -> None:
        self.rows[:, _COLUMNS.index(name)] = values.double()


def _decayed(start: Tensor, decay: Tensor, times: Tensor, least: Tensor) -> Tensor:
    """[R] float64: `ssd_engine.rule.scheme.decayed` of each row, to the last bit."""
    value = start - times * decay
    exact = torch.where(value < EXACT_BELOW, (value * 1e10).round() / 1e10, value)
    return torch.where(times > 0, torch.where(value - least < ROUNDING, least, exact), start)
