"""PassClock: how long the passes of both models take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ssd_engine.backends.transformers.runner import ModelRunner
from ssd_engine.backends.transformers.sequence import SequenceState
from ssd_engine.drafting.pass_times import SIZES, PassTimes


class PassClock:
    """The times of a pair's passes, for the sequences that take part and for those who choose by them."""

    def __init__(self, target: ModelRunner, draft: ModelRunner) -> None:
        self._runners = (target, draft)
        self.target_times = PassTimes()
        self.draft_times = PassTimes()
        self.seconds = 0.0
        """In passes, since it was last set."""

    def calibrate(self) -> None:
        """Measure passes of all sizes, once; the passes that follow keep the times up to date.

        A size that seems slow is not chosen, and so would seem slow for ever: what a first pass of a size takes longer,
        because kernels are made for it, must not count.
        """
        for runner, times in zip(self._runners, (self.target_times, self.draft_times), strict=True):
            if times.is_empty:
                for tokens in SIZES:
                    times.record(tokens, min(runner.seconds(tokens) for _ in range(2)))

    @contextmanager
    def timed(self, runner: ModelRunner, sequences: Sequence[SequenceState], tokens: int) -> Iterator[None]:
        """Enter the time of a pass over so many tokens, for the sequences that took part in it."""
        start, num_graphs = time.perf_counter(), runner.num_graphs
        yield
        runner.wait()
        elapsed = time.perf_counter() - start
        self.seconds += elapsed
        is_target = runner is self._runners[0]
        times = self.target_times if is_target else self.draft_times
        if not times.is_empty and runner.num_graphs == num_graphs:  # a pass that was captured took longer
            times.record(tokens, elapsed)
        for sequence in sequences:
            if is_target:
                sequence.timings.target_forward += elapsed
            else:
                sequence.timings.draft_forward += elapsed
                sequence.timings.draft_passes += 1
