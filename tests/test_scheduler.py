"""The order of work: prompts are read in parts between rounds, and nobody waits longer than is fair."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from ssd_engine.answers.result import Piece, Timings
from ssd_engine.config import GenerationParams, SSDConfig
from ssd_engine.rule.choice import Choice
from ssd_engine.serving.request import Request
from ssd_engine.serving.scheduler import Scheduler


@dataclass(eq=False)
class FakeSequence:
    """A prompt of so many parts."""

    number: int
    num_unread_parts: int
    timings: Timings = field(default_factory=Timings)
    cached_prompt_tokens: int = 0
    num_drafted: None = None


class RecordingDecoder:
    """Notes how many parts were read before each round; the answers end with the round number `rounds`."""

    def __init__(self, rounds: int, parts_at_once: int) -> None:
        self.parts_at_once = parts_at_once
        self.parts_before_round = [0]
        self.read_together: list[list[int]] = []
        """Of the parts that were read together, the numbers of their sequences."""
        self.ended = threading.Event()
        self.seconds = 0.0
        """What the clock says: a part takes 3 seconds, a round 2."""
        self._rounds = rounds
        self._num_opened = 0

    def open(
        self,
        target_ids: Sequence[int],
        draft_ids: Sequence[int],
        params: GenerationParams,
        config: SSDConfig,
        guide: None,
        num_given: int,
    ) -> FakeSequence:
        self._num_opened += 1
        return FakeSequence(self._num_opened - 1, len(target_ids))

    def close(self, sequence: FakeSequence) -> None:
        pass

    def shut_down(self) -> None:
        pass

    def read_prompts(self, sequences: Sequence[FakeSequence]) -> dict[FakeSequence, Exception]:
        self.read_together.append([sequence.number for sequence in sequences])
        self.seconds += 3
        for sequence in sequences:
            self.parts_before_round[-1] += 1
            sequence.num_unread_parts -= 1
        return {}

    @property
    def read(self) -> list[int]:
        """Of each part that was read, the number of its sequence."""
        return [number for numbers in self.read_together for number in numbers]

    def round(self, sequences: Sequence[FakeSequence]) -> list[list[Choice] | Exception]:
        self.parts_before_round.append(0)
        self.seconds += 2
        if len(self.parts_before_round) > self._rounds:
            self.ended.set()
            return [RuntimeError("that will do") for _ in sequences]
        return [[] for _ in sequences]


class EmptyAnswer:
    is_finished = False
    error = None

    def add_round(self, choices: list[Choice]) -> Piece:
        return Piece()


def recorded(parts: list[int], rounds: int, parts_at_once: int = 1) -> RecordingDecoder:
    """What is done for prompts of so many parts that are submitted together."""
    decoder = RecordingDecoder(rounds, parts_at_once)
    scheduler = Scheduler[FakeSequence](
        cast("Any", decoder), max_batch_size=8, max_waiting=8, clock=lambda: decoder.seconds
    )
    requests = [
        Request([0] * count, [], GenerationParams(), SSDConfig(), None, cast("Any", EmptyAnswer()), lambda event: None)
        for count in parts
    ]
    with scheduler._changed:  # so that the worker finds all of them at once
        for request in requests:
            scheduler.submit(request)
    assert decoder.ended.wait(60)
    scheduler.close()
    return decoder


@pytest.mark.parametrize(
    ("parts", "read"),
    [
        ([0, 1, 1, 1, 1, 1, 1, 1], [7, 0, 0]),  # one stream waits for seven
        ([0, 0, 2, 2, 2, 2, 2], [3, 2, 1]),
        ([2, 2], [2, 1, 0]),
    ],
)
def test_few_streams_wait_for_many_prompts_and_not_the_other_way_round(parts: list[int], read: list[int]) -> None:
    assert recorded(parts, len(read)).parts_before_round[: len(read)] == read


@pytest.mark.parametrize("parts", [[0, 10], [0, 0, 0, 0, 10, 10, 10, 10], [0] * 7 + [10]])
def test_where_most_stream_reading_takes_half_as_long_as_decoding(parts: list[int]) -> None:
    """A part of 3 seconds, then three rounds of 2."""
    assert recorded(parts, 9).parts_before_round[:9] == [1, 0, 0, 1, 0, 0, 1, 0, 0]


def test_a_short_prompt_behind_a_long_one_waits_for_as_many_parts_of_it_as_it_has() -> None:
    assert recorded([50, 3], 1).read[:6] == [0, 1, 0, 1, 0, 1]


def test_short_prompts_do_not_keep_a_long_one_waiting() -> None:
    read = recorded([9, 3, 3, 3, 3, 3], 1).read
    assert read[:18].count(0) == 9


def test_parts_of_several_prompts_are_read_together_in_the_order_that_they_would_have_alone() -> None:
    assert recorded([1] * 6, 1, parts_at_once=4).read_together == [[0, 1, 2, 3], [4, 5]]
    assert recorded([50, 3], 1, parts_at_once=4).read[:6] == recorded([50, 3], 1).read[:6]


def test_a_prompt_that_nobody_streams_beside_is_read_as_many_parts_at_once_as_can_be() -> None:
    assert recorded([9], 1, parts_at_once=4).read_together == [[0] * 4, [0] * 4, [0]]


def test_where_most_stream_no_more_is_read_between_rounds_for_being_read_together() -> None:
    assert recorded([0] * 7 + [10], 9, parts_at_once=4).parts_before_round[:9] == [1, 0, 0, 1, 0, 0, 1, 0, 0]
