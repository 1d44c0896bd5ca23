"""The rule for many sequences in tensors, which vLLM runs: `verify` without a loop over sequences.

It decides what `verify` decides, from the same sample spaces by the same `choose`. There the host goes through each
sequence's positions; here all sequences go through their first position together, then their second, and so on, and
the scheme control is a row of `SchemeBatch`. The choices stay on the device; the host asks it for a few numbers: the
largest c, and how deep the sample spaces reach.

R is the number of sequences, P that of the positions of all, L the most that one sequence has, V the shared vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssd_engine.config import SIGNALS
from ssd_engine.rule.draws import Draws, choose
from ssd_engine.rule.predictions import Predictions
from ssd_engine.rule.sample_space import SampleSpaces, sample_spaces
from ssd_engine.rule.scheme_batch import SchemeBatch
from ssd_engine.rule.signal_batch import SignalBatch


@dataclass(frozen=True, kw_only=True)
class Positions:
    """What there is to decide: each sequence's positions, one sequence after the other."""

    counts: list[int]
    """Of each sequence: its positions, at least one."""
    target: Predictions
    """Of all P positions."""
    draft: Predictions
    drafted: Tensor
    """[P] int64 the draft's proposals, which a chosen token may match."""
    followed: Tensor
    """[P] int64 the token that the sequence's next position follows; -1 at its last one."""
    allowed: Tensor | None
    """[P, V] bool, the tokens that masks allow; None: all."""
    scores: Tensor | None = None
    """[P, signals] what the signals give; None: no sequence uses any."""


@dataclass(frozen=True)
class Verdicts:
    """What stands: [R, L] each, a row's first tokens up to the one that ends its round."""

    token_ids: Tensor
    """int64; -1 after the end of the round."""
    matched: Tensor
    is_union: Tensor
    """Whether the token was chosen under Union."""
    is_forced: Tensor
    """Whether a mask left no other token; such a token is in no bin."""
    logprobs: Tensor
    """float32 log-probability of the token under its composite."""
    other_ids: Tensor
    """[R, L, K] int64 the likeliest other tokens, best first; the last one again where there are no more."""
    other_logprobs: Tensor
    """[R, L, K] float32."""
    has_alarm: Tensor
    """Whether it was from this token on that signals asked for Union."""
    scores: Tensor
    """[R, L, signals] float64 what the signals gave, as it was compared; 0 where no sequence uses any."""


def verify_batch(
    positions: Positions,
    schemes: SchemeBatch,
    sizes: Tensor,
    draws: Draws | None,
    num_others: int = 0,
    signals: SignalBatch | None = None,
) -> Verdicts:
    """Choose the tokens that stand; `schemes` and `signals` move on with them.

    Args:
        positions: what is to be decided.
        schemes: R sequences' scheme control.
        sizes: [P] c at each position.
        draws: the random side of all P positions; None: every sequence is greedy.
        num_others: K, likeliest other tokens to tell of.
        signals: R sequences' signals; None: no sequence uses any.
    """
    device = positions.drafted.device
    counts = torch.tensor(positions.counts, device=device)
    last = counts.cumsum(0) - 1
    first = last - counts + 1
    num_allowed = None if positions.allowed is None else positions.allowed.sum(-1)
    if num_allowed is not None:
        sizes = torch.minimum(sizes, num_allowed)
    spaces = sample_spaces(positions.target, positions.draft, sizes)
    stands = torch.ones_like(counts, dtype=torch.bool)
    columns: list[tuple[Tensor, ...]] = []
    no_scores = torch.zeros(len(counts), len(SIGNALS), dtype=torch.float64, device=device)
    for step in range(max(positions.counts)):
        here = (first + step).minimum(last)
        stands = stands & (first + step <= last)
        is_forced = torch.zeros_like(stands) if num_allowed is None else num_allowed[here] == 1
        is_union, has_alarm, scores = schemes.is_union, torch.zeros_like(stands), no_scores
        if signals is not None and positions.scores is not None:
            has_alarm, scores = signals.look(positions.scores[here], stands & ~is_forced)
            is_union = is_union | signals.asks_for_union
        token_ids, *logprobs = _chosen(spaces, here, schemes, is_union, draws, num_others)
        matched = (token_ids == positions.drafted[here]) & ~is_forced
        schemes.record(matched, stands & ~is_forced)
        if signals is not None:
            signals.leave(token_ids, stands & ~is_forced)
        columns.append((token_ids.masked_fill(~stands, -1), matched, is_union, is_forced, *logprobs, has_alarm, scores))
        stands = stands & (token_ids == positions.followed[here])
    return Verdicts(*(torch.stack(column, dim=1) for column in zip(*columns, strict=True)))


def _chosen(
    spaces: SampleSpaces, here: Tensor, schemes: SchemeBatch, is_union: Tensor, draws: Draws | None, num_others: int
) -> tuple[Tensor, ...]:
    """What each sequence chooses at its position `here` [R], under Union where `is_union` [R].

    Ids, log-probabilities, and those of others.
    """
    draws = None if draws is None else draws.at(here)
    answers = []
    for space, alpha in ((spaces.union, schemes.alpha_union), (spaces.intersection, schemes.alpha_intersection)):
        space = space.at(here)
        token_ids = choose(space, alpha, draws)
        p = space.probabilities(alpha)
        is_chosen = space.ids == token_ids[:, None]
        chosen = p.masked_fill(~is_chosen, 0.0).amax(-1)
        answers.append((token_ids, chosen.log(), *_others(space.ids, p.masked_fill(is_chosen, -1.0), num_others)))
    return tuple(
        torch.where(is_union.view(-1, *(1,) * (union.dim() - 1)), union, intersection)
        for union, intersection in zip(*answers, strict=True)
    )


def _others(ids: Tensor, p: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """[R, count] ids and log-probabilities of the likeliest of `ids` [R, n] by `p` [R, n]."""
    best = p.topk(min(count, p.shape[-1]), dim=-1)
    # Each place of the channel holds some token: where there are no more, the last one is told again.
    last = (best.values > 0).sum(-1, keepdim=True).sub(1).clamp_min(0)
    places = torch.arange(count, device=p.device).minimum(last)
    return ids.gather(-1, best.indices).gather(-1, places), best.values.gather(-1, places).clamp_min(0.0).log()
