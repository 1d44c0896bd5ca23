"""One step of vLLM for the requests that ask for SSD: from both models' logits to the tokens that stand.

Nothing here knows vLLM. R is the number of requests, P that of their positions, V the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ssd_engine.backends.vllm.requests import RequestTable
from ssd_engine.backends.vllm.uniforms import ACCEPT, DRAFT, RECOVER, REDRAW, uniforms
from ssd_engine.rule.draws import Draws
from ssd_engine.rule.predictions import Predictions
from ssd_engine.rule.sampling import draw
from ssd_engine.rule.verify_batch import Positions, Verdicts, verify_batch


@dataclass(frozen=True, kw_only=True)
class StepLogits:
    """What both models say at the positions that can be decided, one request after the other."""

    counts: list[int]
    """Of each request: its positions, at least one."""
    target: Tensor
    """[P, V]; -inf where a mask forbids a token."""
    draft: Tensor
    """[P, V]."""
    drafted: Tensor
    """[P] int64 the tokens that the draft proposed; -1 where it has not been asked yet."""
    followed: Tensor
    """[P] int64 the tokens that the next positions follow; -1 at each request's last position."""
    places: Tensor
    """[P] int64 tokens of the answer before each position."""
    scores: Tensor | None = None
    """[P, signals] float32 what the signals give; None where no request uses any."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a step decides for R requests, of which one has at most L positions."""

    verdicts: Verdicts
    is_broken: Tensor
    """[R, L] bool, tokens that stand where a model's numbers are NaN, so that they mean nothing."""
    scores: Tensor | None
    """[R, L, signals] the step's, in rows."""
    thresholds: Tensor
    """[R, signals] float64 of the requests; NaN for signals that are not used."""
    beginnings: Tensor
    """[R, signals] each signal's highest score over a given beginning, for requests that get their first token; else
    -1."""


def decide(step: StepLogits, slots: Tensor, table: RequestTable, num_others: int) -> Decision:
    """Choose the tokens that stand for the R requests in `slots`; their scheme control in `table` moves on."""
    device = step.target.device
    each = slots.repeat_interleave(torch.tensor(step.counts, device=device))
    seeds, temperatures = table.seeds(each), table.temperatures(each)
    allowed: Tensor | None = step.target != -torch.inf  # true of NaN: it is no mask
    if allowed is not None and bool(allowed.all()):
        allowed = None
    from_target, from_draft = (_predictions(logits, temperatures, allowed) for logits in (step.target, step.draft))
    drafted = step.drafted
    is_proposed = drafted >= 0
    if allowed is not None:
        is_proposed = is_proposed & allowed.gather(-1, drafted.clamp_min(0)[:, None])[:, 0]
    if not bool(is_proposed.all()):
        # What a mask forbids, the draft proposes again among what is left: so its proposals are distributed as p_m.
        again = _propose(from_draft, temperatures, uniforms(seeds, step.places, REDRAW))
        drafted = torch.where(is_proposed, drafted, again)
    draws = None
    if temperatures is not None:
        numbers = [uniforms(seeds, step.places, purpose) for purpose in (ACCEPT, RECOVER)]
        draws = Draws(
            sampled=temperatures > 0,
            drafted=drafted,
            q_drafted=from_draft.p.gather(-1, drafted[:, None])[:, 0],
            uniforms=torch.stack(numbers, dim=-1),
            truncation=table.truncation(each),
        )
    schemes, signals = table.schemes(slots), table.signals(slots)
    positions = Positions(
        counts=step.counts,
        target=from_target,
        draft=from_draft,
        drafted=drafted,
        followed=step.followed,
        allowed=allowed,
        scores=step.scores,
    )
    verdicts = verify_batch(positions, schemes, table.sizes(each), draws, num_others, signals)
    table.store(slots, schemes, signals)
    stands = verdicts.token_ids >= 0
    stands[:, 0] = True
    is_broken = _in_rows(_has_failed(from_target, from_draft), step.counts) & stands
    # What was chosen there may be no token at all, or none that a mask allows; and a request that gets no token would
    # be decoded for ever.
    some = torch.zeros_like(drafted) if allowed is None else allowed.long().argmax(-1)
    token_ids = torch.where(is_broken, _in_rows(some, step.counts), verdicts.token_ids)
    return Decision(
        verdicts=replace(verdicts, token_ids=token_ids),
        is_broken=is_broken,
        scores=None if step.scores is None else verdicts.scores,
        thresholds=signals.thresholds,
        beginnings=table.beginnings(slots).masked_fill(_in_rows(step.places, step.counts)[:, :1] > 0, -1.0),
    )


def draft(logits: Tensor, slots: Tensor, table: RequestTable, places: Tensor) -> Tensor:
    """[R] int64 the tokens that the draft proposes from its `logits` [R, V], at `places` [R] of the answers."""
    temperatures = table.temperatures(slots)
    predictions = _predictions(logits, temperatures, None)
    return _propose(predictions, temperatures, uniforms(table.seeds(slots), places, DRAFT))


def _predictions(logits: Tensor, temperatures: Tensor | None, allowed: Tensor | None) -> Predictions:
    """Of [P, V] logits, greedy ones at temperature 1. Where a model's numbers have failed, a row of p is all NaN."""
    if temperatures is not None:
        temperatures = temperatures.masked_fill(temperatures == 0, 1.0)
    return Predictions.of(logits, temperatures, allowed)


def _propose(predictions: Predictions, temperatures: Tensor | None, numbers: Tensor) -> Tensor:
    """[P] int64 tokens that the draft proposes: the likeliest, or drawn by `numbers` [P] where sampled."""
    likeliest = predictions.logits.argmax(-1)
    return likeliest if temperatures is None else torch.where(temperatures > 0, draw(predictions.p, numbers), likeliest)


def _has_failed(target: Predictions, draft: Predictions) -> Tensor:
    """[P] bool: whether one of the models' numbers are NaN; one such logit spoils a whole row of p."""
    return (target.p[:, 0] + draft.p[:, 0]).isnan()


def _in_rows(values: Tensor, counts: list[int]) -> Tensor:
    """[R, L] `values` [P] of each request's positions in a row of its own; after its end the last one again."""
    sizes = torch.tensor(counts, device=values.device)
    last = sizes.cumsum(0) - 1
    places = (last - sizes + 1)[:, None] + torch.arange(max(counts), device=values.device)
    return values[places.minimum(last[:, None])]
