"""Step 3 of a round: which tokens stand, given both models' distributions and the drafted ids (paper, section 3.1).

A chosen token *matches* when it is the drafted one; the round ends after the first that does not. With sampling,
acceptance and recovery follow Leviathan et al. (arXiv 2211.17192), with the composite in the place of the target, so
every token is distributed exactly as the composite. L is the number of drafted tokens, V the shared vocabulary, n the
number of candidates at a position.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssd_engine.config import GenerationParams, SSDConfig
from ssd_engine.sample_space import sample_spaces
from ssd_engine.scheme import Bin, Scheme, SchemeController


@dataclass(frozen=True)
class Candidates:
    """The tokens that one position may become."""

    ids: Tensor
    """[n] int64."""
    values: Tensor
    """[n] float32 composite; a greedy choice takes the largest."""
    probabilities: Callable[[], Tensor]
    """Makes the [n] float32 distribution P, which sums to 1."""
    scheme: Scheme


@dataclass(frozen=True)
class Choice:
    """One token that stands."""

    token_id: int
    matched: bool
    scheme: Scheme
    bin: Bin | None
    """The match-ratio bin that this token completed."""
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


class Verifier:
    """Chooses the tokens of one sequence. It owns the sequence's scheme controller and random numbers."""

    def __init__(self, params: GenerationParams, config: SSDConfig, eos_ids: Collection[int], device: torch.device):
        self._params = params
        self._config = config
        self._eos_ids = frozenset(eos_ids)
        self._controller = SchemeController(config)
        self._generator = torch.Generator(device)
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    @property
    def num_draft_tokens(self) -> int:
        """Tokens that the draft proposes in a round; 0 where the target decodes alone."""
        return 0 if self._params.decoding == "target" else self._config.num_draft_tokens

    def probabilities(self, logits: Tensor) -> Tensor:
        """[..., V] float32 probabilities of `logits` at the request's temperature."""
        logits = logits.float()
        return (logits / self._params.temperature if self._params.temperature else logits).softmax(-1)

    def draft(self, p_draft: Tensor) -> int:
        """The token that the draft proposes, from its [V] probabilities."""
        if self._params.temperature:
            return self._draw(p_draft)
        return _largest(p_draft)

    def verify(self, p_target: Tensor, p_draft: Tensor, drafted: Sequence[int], limit: int) -> list[Choice]:
        """Choose tokens until one is not the drafted one, ends the answer, or reaches `limit`.

        Args:
            p_target: [max(L, 1), V] p_M at the drafted positions.
            p_draft: [L, V] p_m at the same positions.
            drafted: L token ids; empty where the target decodes alone.
            limit: most tokens to choose, at least 1.
        """
        candidates = self._candidates(p_target, p_draft)
        chosen: list[Choice] = []
        for position in range(min(len(p_target), limit)):
            choice = self._choose(candidates(position), p_draft[position:], drafted[position:])
            chosen.append(choice)
            if not choice.matched or choice.token_id in self._eos_ids:
                break
        return chosen

    def _candidates(self, p_target: Tensor, p_draft: Tensor) -> Callable[[int], Candidates]:
        if self._params.decoding != "ssd":
            ids = torch.arange(p_target.shape[-1], device=p_target.device)
            return lambda i: Candidates(ids, p_target[i], lambda: p_target[i], Scheme.NONE)
        spaces = sample_spaces(p_target, p_draft, self._config.sample_space_size)

        def at(position: int) -> Candidates:
            # Read here, at the position itself: the scheme may have changed inside this round.
            scheme, alpha = self._controller.scheme, self._controller.alpha
            space = (spaces.union if scheme is Scheme.UNION else spaces.intersection).at(position)
            return Candidates(space.ids[0], space.composite(alpha)[0], lambda: space.probabilities(alpha)[0], scheme)

        return at

    def _choose(self, candidates: Candidates, p_draft: Tensor, drafted: Sequence[int]) -> Choice:
        """Choose at the first of the remaining positions."""
        proposal = drafted[0] if drafted else None
        if self._params.temperature:
            token_id = self._sample(candidates, p_draft[0] if drafted else None, proposal)
        else:
            token_id = _lowest_id_of_largest(candidates.ids, candidates.values)
        matched = token_id == proposal
        completed = self._controller.record(matched) if candidates.scheme is not Scheme.NONE else None
        logprob, top = self._logprobs(candidates, token_id) if self._params.logprobs else (None, ())
        return Choice(token_id, matched, candidates.scheme, completed, logprob, top)

    def _sample(self, candidates: Candidates, q: Tensor | None, proposal: int | None) -> int:
        p = self._truncate(candidates.probabilities())
        if q is None or proposal is None:
            return int(candidates.ids[self._draw(p)])
        accept = p[candidates.ids == proposal].sum() / q[proposal]
        if torch.rand((), generator=self._generator, device=p.device) < accept:
            return proposal
        residual = (p - q[candidates.ids]).clamp_min(0.0)
        # Rounding alone can leave nothing of a residual; P is then what the draft proposed from.
        return int(candidates.ids[self._draw(residual if residual.sum() > 0 else p)])

    def _truncate(self, p: Tensor) -> Tensor:
        """Apply the request's top_k and top_p to P [n]."""
        if self._params.top_k is None and self._params.top_p >= 1:
            return p
        ordered, order = p.sort(descending=True, stable=True)
        if self._params.top_k is not None:
            ordered[self._params.top_k :] = 0.0
            ordered /= ordered.sum()
        # A token stays while those before it do not yet hold top_p of the mass.
        ordered[ordered.cumsum(-1) - ordered >= self._params.top_p] = 0.0
        return torch.zeros_like(p).scatter(-1, order, ordered / ordered.sum())

    def _draw(self, weights: Tensor) -> int:
        return int(torch.multinomial(weights, 1, generator=self._generator))

    def _logprobs(self, candidates: Candidates, token_id: int) -> tuple[float, tuple[tuple[int, float], ...]]:
        log_p = candidates.probabilities().log()
        best = log_p.topk(min(self._params.top_logprobs, len(log_p)))
        top = zip(candidates.ids[best.indices].tolist(), best.values.tolist(), strict=True)
        return float(log_p[candidates.ids == token_id].max()), tuple((i, v) for i, v in top if v > -torch.inf)


def _largest(values: Tensor) -> int:
    """Index of the largest of `values` [n], the lowest of equals."""
    return int((values == values.max()).nonzero()[0])


def _lowest_id_of_largest(ids: Tensor, values: Tensor) -> int:
    return int(ids[values == values.max()].min())
