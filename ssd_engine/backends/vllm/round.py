"""One step of vLLM for the requests that ask for SSD: from both models' logits to the tokens that stand.

Nothing here knows vLLM. R is the number of requests, P that of their positions, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssd_engine.backends.vllm.requests import RequestEntry, RequestTable
from ssd_engine.backends.vllm.uniforms import ACCEPT, DRAFT, RECOVER, REDRAW, uniforms
from ssd_engine.sampling import draw
from ssd_engine.verify import Draws, tempered, truncation_of
from ssd_engine.verify_batch import Positions, Verdicts, verify_batch


@dataclass(frozen=True)
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


def decide(step: StepLogits, entries: Sequence[RequestEntry], table: RequestTable, num_others: int) -> Verdicts:
    """Choose the tokens that stand for R requests; their scheme control in `table` moves on."""
    device = step.target.device
    each = [entry for entry, count in zip(entries, step.counts, strict=True) for _ in range(count)]
    slots = torch.tensor([entry.slot for entry in entries], device=device)
    seeds = table.seeds(torch.tensor([entry.slot for entry in each], device=device))
    temperatures = _temperatures(each, device)
    allowed: Tensor | None = step.target > -torch.inf
    if allowed is not None and bool(allowed.all()):
        allowed = None
    # A model whose numbers have failed must not take the other requests down with it.
    p_target = tempered(step.target, temperatures, allowed).nan_to_num_()
    p_draft = tempered(step.draft, temperatures, allowed).nan_to_num_()
    drafted, followed = step.drafted, step.followed
    is_proposed = drafted >= 0
    if allowed is not None:
        is_proposed = is_proposed & allowed.gather(-1, drafted.clamp_min(0)[:, None])[:, 0]
    if not bool(is_proposed.all()):
        # What a mask forbids, the draft proposes again among what is left: so its proposals are distributed as p_m.
        drafted = torch.where(is_proposed, drafted, propose(p_draft, each, uniforms(seeds, step.places, REDRAW)))
    draws = None
    if temperatures is not None:
        numbers = [uniforms(seeds, step.places, purpose) for purpose in (ACCEPT, RECOVER)]
        draws = Draws(
            sampled=_is_sampled(each, device),
            drafted=drafted,
            q_drafted=p_draft.gather(-1, drafted[:, None])[:, 0],
            uniforms=torch.stack(numbers, dim=-1),
            truncation=truncation_of([(entry.top_k, entry.top_p) for entry in each], device),
        )
    sizes = torch.tensor([entry.config.sample_space_size for entry in each], device=device)
    schemes = table.schemes(slots)
    verdicts = verify_batch(
        Positions(step.counts, p_target, p_draft, drafted, followed, allowed), schemes, sizes, draws, num_others
    )
    table.store(slots, schemes)
    return verdicts


def draft(logits: Tensor, entries: Sequence[RequestEntry], table: RequestTable, places: Tensor) -> Tensor:
    """[R] int64 the tokens that the draft proposes from its `logits` [R, V], at `places` [R] of the answers."""
    p_draft = tempered(logits, _temperatures(entries, logits.device), None).nan_to_num_()
    seeds = table.seeds(torch.tensor([entry.slot for entry in entries], device=logits.device))
    return propose(p_draft, entries, uniforms(seeds, places, DRAFT))


def propose(p_draft: Tensor, entries: Sequence[RequestEntry], numbers: Tensor) -> Tensor:
    """[P] int64 tokens proposed from `p_draft` [P, V]: the likeliest, or drawn by `numbers` [P] where sampled."""
    likeliest = p_draft.argmax(-1)
    if not any(entry.temperature for entry in entries):
        return likeliest
    return torch.where(_is_sampled(entries, p_draft.device), draw(p_draft, numbers), likeliest)


def _temperatures(entries: Sequence[RequestEntry], device: torch.device) -> Tensor | None:
    """[P]; None where all are greedy."""
    if not any(entry.temperature for entry in entries):
        return None
    return torch.tensor([entry.temperature or 1.0 for entry in entries], device=device)


def _is_sampled(entries: Sequence[RequestEntry], device: torch.device) -> Tensor:
    return torch.tensor([entry.temperature > 0 for entry in entries], device=device)
