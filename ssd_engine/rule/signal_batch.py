"""The signals of many sequences at once: `SignalControl`'s rule over rows of one tensor, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssd_engine.config import SIGNALS, SignalConfig

_SETTINGS = 2 + len(SIGNALS)
_COLUMNS = ("places_left", "is_refusing", *(f"mean of {name}" for name in SIGNALS), "hold", "smoothing", *SIGNALS)
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
            hold, smoothing = (0, 1) if config is None else (config.hold, config.smoothing)
            settings = [hold, smoothing, *(thresholds.get(signal, unused) for signal in SIGNALS)]
            rows.append([0.0, 0.0, *(unused for _ in SIGNALS), *map(float, settings)])
        return torch.tensor(rows, dtype=torch.float64, device=device).view(-1, len(_COLUMNS))

    @property
    def asks_for_union(self) -> Tensor:
        """[R] bool: whether Union is asked for at the place that was looked at, or at a forced token."""
        return (self.rows[:, 0] > 0) | (self.rows[:, 1] > 0)

    @property
    def thresholds(self) -> Tensor:
        """[R, signals] float64, NaN for those that are not used."""
        return self.rows[:, _SETTINGS + 2 :]

    def look(self, scores: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Take in what the signals give, `scores` [R, signals], at the next place of each sequence that `counts` [R].

        Args:
            scores: -1 where a signal gives nothing.

        Returns:
            [R] bool: whether it is from here on that signals ask for Union; and [R, signals] float64, the scores as
            they were compared, smoothed where the settings say so.
        """
        hold, smoothing = self.rows[:, _SETTINGS], self.rows[:, _SETTINGS + 1, None]
        scores, means = scores.double(), self.rows[:, 2:_SETTINGS]
        is_given = scores >= 0
        has_mean = is_given & ~means.isnan()
        smoothed = torch.where(has_mean, means * (1 - 1 / smoothing) + scores / smoothing, scores)
        has_alarm = (smoothed >= self.thresholds).any(-1) & counts
        raised = has_alarm & ~self.asks_for_union
        self.rows[:, 2:_SETTINGS] = torch.where(is_given & counts[:, None], smoothed, means)
        self.rows[:, 0] = torch.where(has_alarm, hold, self.rows[:, 0])
        return raised, smoothed

    def leave(self, token_ids: Tensor, counts: Tensor) -> None:
        """Go past the place of each sequence that `counts` [R] bool; `token_ids` [R] were chosen there."""
        begins_refusal = (self.rows[:, 0] > 0) & torch.isin(token_ids, self._refusal_ids) & counts
        self.rows[:, 1] = self.rows[:, 1].maximum(begins_refusal.double())
        self.rows[:, 0] = (self.rows[:, 0] - counts.double()).clamp_min(0.0)
