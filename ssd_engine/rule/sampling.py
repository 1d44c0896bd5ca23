"""Random choice over batches of positions: drawing, truncation, and acceptance of drafts (arXiv 2211.17192).

Shapes use P for positions and n for the candidates at each. Every random number is given, never made here, so that a
position's outcome depends on its own numbers alone.
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """[P] int64 indices drawn in proportion to `weights` [P, n], by `uniforms` [P] float64 in [0, 1)."""
    cumulative = weights.double().cumsum(-1)
    # The first index whose cumulative weight is past the number drawn: its own weight is above 0.
    index = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)
    return index.clamp(max=weights.shape[-1] - 1)[:, 0]


def truncate(p: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """[P, n]: each distribution of `p` [P, n] cut to its likeliest `top_k` [P], then to the nucleus `top_p` [P]."""
    nucleus = top_p.masked_fill(top_p >= 1, torch.inf)[:, None]
    ordered, order = p.sort(descending=True, stable=True)
    ordered = ordered.masked_fill(torch.arange(p.shape[-1], device=p.device) >= top_k[:, None], 0.0)
    ordered /= ordered.sum(-1, keepdim=True)
    # A token stays while those before it do not yet hold top_p of the mass.
    ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= nucleus, 0.0)
    return torch.zeros_like(p).scatter(-1, order, ordered / ordered.sum(-1, keepdim=True))


def accept_or_recover(
    *, ids: Tensor, p: Tensor, q: Tensor, drafted: Tensor, q_drafted: Tensor, uniforms: Tensor
) -> Tensor:
    """[P] token ids distributed as `p`, the drafted ones wherever speculative sampling accepts them.

    Args:
        ids: [P, n] candidates.
        p: [P, n] their probabilities; 0 for padding.
        q: [P, n] the draft's probabilities of the same.
        drafted: [P] drafted ids, drawn from the draft's distribution; negative where nothing was drafted.
        q_drafted: [P] the draft's probability of `drafted`.
        uniforms: [P, 2] float64 in [0, 1): one to accept, one to recover.
    """
    p_drafted = torch.where(ids == drafted[:, None], p, 0.0).sum(-1)
    accepted = (uniforms[:, 0] * q_drafted < p_drafted) & (drafted >= 0)
    residual = torch.where((drafted >= 0)[:, None], (p - q).clamp_min(0.0), p)
    # Rounding alone can leave nothing of a residual; P is then what the draft proposed from.
    residual = torch.where(residual.sum(-1, keepdim=True) > 0, residual, p)
    recovered = ids.gather(-1, draw(residual, uniforms[:, 1])[:, None])[:, 0]
    return torch.where(accepted, drafted, recovered)
