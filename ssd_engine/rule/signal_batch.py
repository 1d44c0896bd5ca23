"""The signals of many sequences at once: `SignalControl`'s rule over rows of one tensor, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssd_engine.config import SIGNALS, SignalConfig
from ssd_engine.rule.signals import SURE

_MEANS = 3
_SETTINGS = _MEANS + len(SIGNALS)
_THRESHOLDS = _SETTINGS + 3
_COLUMNS = (
    *("places_left", "is_refusing", "highest_break_mass", *(f"mean of {name}" for name in SIGNALS)),
    *("hold", "smoothing", "latch", *SIGNALS),
)
"""What makes up a row, in float64: state, then settings. NaN: a mean of nothing yet, a signal that is not used."""


class SignalBatch:
    """R sequences' signals, at the beginning of their answers."""

    def __init__(self, rows: Tensor, refusal_ids: Tensor) -> None:
        self.rows = rows
        """[R, columns] float64: state and settings, which `look` and `leave` change in place."""
        self._refusal_ids = refusal_ids

    @staticmethod
    def rows_of(configs: Sequence[SignalConfig | None], device: torch.device) -> Tensor:
        """[R, columns] rows of sequences that are about to start; None: no signal is used."""
        unused = float("nan")
        rows = []
        for config in configs:
            thresholds = {} if config is None else config.thresholds
            own = (0, 1, False) if config is None else (config.hold, config.smoothing, config.latch)
            settings = [*own, *(thresholds.get(signal, unused) for signal in SIGNALS)]
            rows.append([0.0, 0.0, SURE, *(unused for _ in SIGNALS), *map(float, settings)])
        return torch.tensor(rows, dtype=torch.float64, device=device).view(-1, len(_COLUMNS))

    @property
    def asks_for_union(self) -> Tensor:
        """[R] bool: whether Union is asked for at the place that was looked at, or at a forced token."""
        return (self.rows[:, 0] > 0) | (self.rows[:, 1] > 0)

    @property
    def thresholds(self) -> Tensor:
        """[R, signals] float64, NaN for those that are not used."""
        return self.rows[:, _THRESHOLDS:]

    @property
    def latches(self) -> Tensor:
        """[R] bool: whether alarms in a given beginning are latched."""
        return self.rows[:, _SETTINGS + 2] > 0

    @property
    def is_latched(self) -> Tensor:
        """[R] bool: whether an alarm in a given beginning holds at the answer's first place, before any was chosen."""
        return self.asks_for_union & self.latches

    def look(self, scores: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Take in what the signals give, `scores` [R, signals], at the next place of each sequence that `counts` [R].

        Args:
            scores: -1 where a signal gives nothing.

        Returns:
            [R] bool: whether it is from here on that signals ask for Union; and [R, signals] float64, the scores as
            they were compared, smoothed where the settings say so.
        """
        hold, smoothing = self.rows[:, _SETTINGS], self.rows[:, _SETTINGS + 1, None]
        scores, means = scores.double(), self.rows[:, _MEANS:_SETTINGS]
        is_given = scores >= 0
        has_mean = is_given & ~means.isnan()
        smoothed = torch.where(has_mean, means * (1 - 1 / smoothing) + scores / smoothing, scores)
        has_alarm = (smoothed >= self.thresholds).any(-1) & counts
        raised = has_alarm & ~self.asks_for_union
        self.rows[:, _MEANS:_SETTINGS] = torch.where(is_given & counts[:, None], smoothed, means)
        self.rows[:, 0] = torch.where(has_alarm, hold, self.rows[:, 0])
        return raised, smoothed

    def leave(self, token_ids: Tensor, counts: Tensor) -> None:
        """Go past the place of each sequence that `counts` [R] bool; `token_ids` [R] were chosen there."""
        begins_refusal = (self.rows[:, 0] > 0) & torch.isin(token_ids, self._refusal_ids) & counts
        self.rows[:, 1] = self.rows[:, 1].maximum(begins_refusal.double())
        self.rows[:, 0] = (self.rows[:, 0] - counts.double()).clamp_min(0.0)

    def leave_given(self, break_masses: Tensor) -> Tensor:
        """Go past a place of each sequence's given beginning, where its draft breaks off with `break_masses` [R].

        Returns:
            [R] bool: whether it is surer to do so than at all places before, and than not.
        """
        self.rows[:, 0] = torch.where(self.latches, self.rows[:, 0], (self.rows[:, 0] - 1).clamp_min(0.0))
        is_surest = self.latches & (break_masses > self.rows[:, 2])
        self.rows[:, 2] = torch.where(is_surest, break_masses.double(), self.rows[:, 2])
        return is_surest
