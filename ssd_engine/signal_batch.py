"""The signals of many sequences at once: `SignalControl`'s rule over rows of one tensor, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssd_engine.config import SIGNALS, SignalConfig

_COLUMNS = ("places_left", "is_refusing", "hold", *SIGNALS)
"""What makes up a row, in float64: state, then settings; the threshold of a signal that is not used is NaN."""


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
            hold = 0.0 if config is None else float(config.hold)
            rows.append([0.0, 0.0, hold, *(thresholds.get(signal, unused) for signal in SIGNALS)])
        return torch.tensor(rows, dtype=torch.float64, device=device).view(-1, len(_COLUMNS))

    @property
    def asks_for_union(self) -> Tensor:
        """[R] bool: whether Union is asked for at the place that was looked at, or at a forced token."""
        return (self.rows[:, 0] > 0) | (self.rows[:, 1] > 0)

    @property
    def thresholds(self) -> Tensor:
        """[R, signals] float64, NaN for those that are not used."""
        return self.rows[:, 3:]

    def look(self, scores: Tensor, counts: Tensor) -> Tensor:
        """Take in what the signals give, `scores` [R, signals], at the next place of each sequence that `counts` [R].

        Returns:
            [R] bool: whether it is from here on that signals ask for Union.
        """
        has_alarm = (scores.double() >= self.thresholds).any(-1) & counts
        raised = has_alarm & ~self.asks_for_union
        self.rows[:, 0] = torch.where(has_alarm, self.rows[:, 2], self.rows[:, 0])
        return raised

    def leave(self, token_ids: Tensor, counts: Tensor) -> None:
        """Go past the place of each sequence that `counts` [R] bool; `token_ids` [R] were chosen there."""
        begins_refusal = (self.rows[:, 0] > 0) & torch.isin(token_ids, self._refusal_ids) & counts
        self.rows[:, 1] = self.rows[:, 1].maximum(begins_refusal.double())
        self.rows[:, 0] = (self.rows[:, 0] - counts.double()).clamp_min(0.0)
