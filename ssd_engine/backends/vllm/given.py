"""Given beginnings of answers: where a step reads them, and what signals say there. Nothing here knows vLLM."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssd_engine.backends.vllm.requests import RequestTable
from ssd_engine.config import SIGNALS
from ssd_engine.rule.signal_scores import refusal_mass

_AT_ONCE = 128
"""Places whose logits are held at a time."""


@dataclass(frozen=True)
class GivenPlaces:
    """Places of one request's beginning that follow one another."""

    slot: int
    tokens: range
    """Of the step: after these the draft says what comes at the places."""


def given_places(
    slots: Sequence[int | None],
    *,
    starts: NDArray[np.int32],
    computed: NDArray[np.int32],
    prompt_lengths: NDArray[np.int32],
    num_tokens: NDArray[np.int32],
    table: RequestTable,
) -> list[GivenPlaces]:
    """Find the places that a step reads.

    Args:
        slots: R places in the table; None: the request asks for vLLM's own rule.
        starts: [R + 1] where each request's tokens begin among the step's, and where the last one's end.
        computed: [R] tokens that were read before the step.
        prompt_lengths, num_tokens: [R] tokens of the prompt, and of prompt and answer.
        table: the requests.
    """
    found = []
    for row, slot in enumerate(slots):
        num_given = 0 if slot is None else table.num_given(slot)
        if slot is None or not num_given or num_tokens[row] > prompt_lengths[row]:
            continue
        first, length = int(computed[row]), int(starts[row + 1] - starts[row])
        last = int(prompt_lengths[row]) - 1  # after it comes the answer's first place
        begin, end = max(last - num_given, 0, first), min(last, first + length)
        if begin < end:
            shift = int(starts[row]) - first
            found.append(GivenPlaces(slot, range(begin + shift, end + shift)))
    return found


def listen(
    places: Sequence[GivenPlaces], heard: Callable[[Tensor], tuple[Tensor, Tensor]], table: RequestTable
) -> None:
    """Take in what signals say at given places.

    Args:
        places: of any requests.
        heard: gives [P, V] the draft's logits and [P] its probe's scores after [P] tokens of the step.
        table: the requests, whose signals move on.
    """
    device = table.refusal_ids.device
    for each in places:
        for begin in range(each.tokens.start, each.tokens.stop, _AT_ONCE):
            at = torch.arange(begin, min(begin + _AT_ONCE, each.tokens.stop), device=device)
            logits, probe_scores = heard(at)
            # The target's word on these places would cost a good part of a pass more, so there is no KL.
            scores = torch.full((len(at), len(SIGNALS)), -1.0, device=device)
            scores[:, SIGNALS.index("refusal_mass")] = refusal_mass(logits, table.refusal_ids)
            scores[:, SIGNALS.index("probe")] = probe_scores
            table.look_back(each.slot, scores, logits)


def put_latched(positions: Mapping[int, int], draft: Tensor, target: Tensor, table: RequestTable) -> None:
    """Where an alarm in a given beginning is latched, put what the draft says at the answer's first place then.

    A grammar that forbids the likeliest of it wants something else there.

    Args:
        positions: of answers that start, among P positions, and their requests' slots.
        draft: [P, V] logits, which change in place.
        target: [P, V] logits; -inf where a grammar forbids a token.
        table: the requests.
    """
    for position, slot in positions.items():
        latched = table.latched(slot)
        if latched is not None and target[position, latched.argmax()] != -torch.inf:
            draft[position] = latched.to(draft.dtype)
