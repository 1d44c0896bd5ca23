"""Step 3 of a round: which drafted tokens are accepted, and what replaces the first that is not (paper, section 3.1).

This is the definition, and what the transformers backend runs; `verify_batch` decides the same for vLLM.

A chosen token *matches* when it is the drafted one; the round ends after the first that does not. With sampling,
acceptance and recovery follow Leviathan et al. (arXiv 2211.17192), with the composite in the place of the target, so
every token is distributed exactly as the composite.

All sequences of a round are verified together. What may become of a position depends on the scheme in force there,
and that on the tokens before it; so the tensors answer for every scheme and weight that may be in force (usually one
weight of Intersection, and Union), and the scheme control picks among the answers. The tensors of logits and
probabilities stay where the models are. To the host come one small table of token ids a round, a few numbers that say
how deep the sample spaces reach, and the log-probabilities of requests that ask for them.

R is the number of sequences, P the number of positions of all (L each, or 1 where nothing is drafted), V the shared
vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssd_engine.errors import SSDError
from ssd_engine.rule.choice import NOT_NUMBERS, Choice
from ssd_engine.rule.draws import Draws, choose, truncation_of
from ssd_engine.rule.predictions import Predictions, masked, tempered
from ssd_engine.rule.sample_space import SampleSpaces, sample_spaces
from ssd_engine.rule.sampling import draw
from ssd_engine.rule.scheme import Scheme
from ssd_engine.rule.signals import Scores
from ssd_engine.rule.verifier import Verifier


@dataclass(frozen=True)
class Turn:
    """One sequence's part in a round."""

    verifier: Verifier
    places: Sequence[int]
    """Of each position, the tokens of the answer before it: L positions, or one where the target decodes alone."""

    @property
    def num_positions(self) -> int:
        """P: positions of all sequences."""
        return len(self.places)


def first_positions(turns: Sequence[Turn]) -> list[int]:
    """Where each turn's positions begin among those of all turns."""
    return [0, *itertools.accumulate(turn.num_positions for turn in turns)][: len(turns)]


def temperatures_of(verifiers: Sequence[Verifier], device: torch.device) -> Tensor | None:
    """[P] float32 temperature of each of `verifiers`, 1 for greedy ones; None where all are greedy."""
    if not any(verifier.is_sampled for verifier in verifiers):
        return None
    temperatures = [verifier.params.temperature or 1.0 for verifier in verifiers]
    return torch.tensor(temperatures, dtype=torch.float32, device=device)


def propose(
    logits: Tensor, verifiers: Sequence[Verifier], places: Sequence[int], allowed: Tensor | None = None
) -> Tensor:
    """[R] int64 tokens that the draft proposes.

    Args:
        logits: [R, V] the draft's.
        verifiers: R of them.
        places: R places in the answers.
        allowed: [R, V] bool, the tokens that grammars allow; None: all.
    """
    logits = masked(logits, allowed)
    likeliest = logits.argmax(-1)  # the first, so the lowest id, of equals
    temperatures = temperatures_of(verifiers, logits.device)
    if temperatures is None:
        return likeliest
    uniforms = [verifier.uniforms(place)[0] for verifier, place in zip(verifiers, places, strict=True)]
    p = tempered(logits, temperatures)
    drawn = draw(p, torch.tensor(uniforms, dtype=torch.float64, device=p.device))
    return torch.where(torch.tensor([verifier.is_sampled for verifier in verifiers], device=p.device), drawn, likeliest)


def verify(
    turns: Sequence[Turn],
    target_logits: Tensor,
    draft_logits: Tensor,
    drafted: Tensor,
    allowed: Tensor | None = None,
    scores: Sequence[Scores] = (),
) -> list[list[Choice] | Exception]:
    """Choose the tokens that stand, for all sequences of a round.

    Args:
        turns: R sequences; each has its `num_positions` rows in the tensors, one sequence after the other.
        target_logits: [P, V] the target's at the drafted positions.
        draft_logits: [P, V] the draft's at the same positions; any numbers where nothing was drafted.
        drafted: [P] int64 drafted ids; -1 where nothing was drafted.
        allowed: [P, V] bool, the tokens that grammars allow; None: all.
        scores: of all P positions, what the signals give there; empty where no sequence uses any.

    Returns:
        For each sequence its tokens, or what went wrong with it alone.
    """
    temperatures = temperatures_of([turn.verifier for turn in turns for _ in turn.places], drafted.device)
    target = Predictions.of(target_logits, temperatures, allowed)
    draft = Predictions.of(draft_logits, temperatures, allowed)
    table = _Table(turns, target, draft, drafted, None if allowed is None else allowed.sum(-1), scores)
    return [table.choices_of(index) for index in range(len(turns))]


class _Table:
    """Every token that a round's positions may become, by scheme and weight, on the host.

    Where SSD chooses, the tokens come from sample spaces; elsewhere from the target's whole distribution.
    """

    def __init__(
        self,
        turns: Sequence[Turn],
        target: Predictions,
        draft: Predictions,
        drafted: Tensor,
        num_allowed: Tensor | None,
        scores: Sequence[Scores],
    ) -> None:
        self._turns = turns
        self._scores = scores
        self._firsts = first_positions(turns)
        self._positions = [turn for turn in turns for _ in turn.places]
        self._alphas = [turn.verifier.controller.upcoming_alphas(turn.num_positions) for turn in turns]
        self._target = target
        self._draws = _draws_of(turns, draft.p, drafted) if any(turn.verifier.is_sampled for turn in turns) else None
        self._spaces: SampleSpaces | None = None
        ssd = [index for index, turn in enumerate(self._positions) if turn.verifier.is_ssd]
        others = [index for index, turn in enumerate(self._positions) if not turn.verifier.is_ssd]
        self._space_of = {position: index for index, position in enumerate(ssd)}
        """Of the positions where SSD chooses: their places in `_spaces`."""
        table = drafted.new_zeros(len(self._positions), 3 + max(map(len, self._alphas)))
        table[:, 0] = drafted
        table[:, 1] = (target.p[:, 0] + draft.p[:, 0]).isnan()  # one logit that is no number spoils a whole row
        if ssd:
            here = self._at(ssd)
            sizes = self._sizes(ssd, None if num_allowed is None else num_allowed[here])
            self._spaces = sample_spaces(target.at(here), draft.at(here), sizes)
            table[here, 2:] = self._composite_choices(ssd, self._spaces, self._draws and self._draws.at(here))
        if others:
            here = self._at(others)
            table[here, 2] = self._target_choices(target.at(here), draft.at(here), self._draws and self._draws.at(here))
        self._rows: list[list[int]] = table.tolist()

    def _at(self, positions: Sequence[int]) -> slice | Tensor:
        """Some of the positions as an index; all of them without a copy."""
        if len(positions) == len(self._positions):
            return slice(None)
        return torch.tensor(positions, device=self._target.p.device)

    def _sizes(self, positions: Sequence[int], num_allowed: Tensor | None) -> int | Tensor:
        """C at some positions: where a grammar allows fewer tokens, all of these are the sample space."""
        sizes = [self._positions[position].verifier.config.sample_space_size for position in positions]
        if num_allowed is None and len(set(sizes)) == 1:
            return sizes[0]
        size = torch.tensor(sizes, device=self._target.p.device)
        return size if num_allowed is None else torch.minimum(size, num_allowed)

    def _composite_choices(self, positions: Sequence[int], spaces: SampleSpaces, draws: Draws | None) -> Tensor:
        """[P, 1 + weights] what Union chooses at some positions, then Intersection at each weight."""
        device = spaces.union.ids.device
        unions = [self._positions[position].verifier.config.alpha_union for position in positions]
        columns = [choose(spaces.union, torch.tensor(unions, device=device), draws)]
        alphas = [alphas for alphas, turn in zip(self._alphas, self._turns, strict=True) for _ in turn.places]
        for column in range(max(map(len, self._alphas))):
            # Sequences with fewer weights than others have their last one again.
            weights = [alphas[position][min(column, len(alphas[position]) - 1)] for position in positions]
            columns.append(choose(spaces.intersection, torch.tensor(weights, device=device), draws))
        return torch.stack(columns, dim=-1)

    def _target_choices(self, target: Predictions, draft: Predictions, draws: Draws | None) -> Tensor:
        """[P] what the lossless baselines choose: P = p_M."""
        greedy = target.logits.argmax(-1)  # the first, so the lowest id, of equals
        if draws is None:
            return greedy
        ids = torch.arange(target.p.shape[-1], device=greedy.device).expand_as(target.p)
        return draws.choose(ids=ids, p=target.p, q=draft.p, greedy=greedy)

    def choices_of(self, index: int) -> list[Choice] | Exception:
        """The tokens of sequence `index`: drafted ones that are accepted, then the one that replaces the next."""
        turn = self._turns[index]
        first = self._firsts[index]
        rows = self._rows[first : first + turn.num_positions]
        scores = self._scores[first : first + turn.num_positions]
        alphas = self._alphas[index]

        def chooser(row: list[int]) -> Callable[[Scheme, float], int]:
            def token(scheme: Scheme, alpha: float) -> int:
                if row[1]:
                    raise SSDError(NOT_NUMBERS)
                return row[3 + alphas.index(alpha)] if scheme is Scheme.INTERSECTION else row[2]

            return token

        def logprobs(
            position: int, scheme: Scheme, alpha: float, token_id: int
        ) -> tuple[float, tuple[tuple[int, float], ...]]:
            return self._logprobs(first + position, scheme, alpha, token_id, turn.verifier.params.top_logprobs)

        try:
            return turn.verifier.choose_tokens(
                [chooser(row) for row in rows], [row[0] for row in rows], logprobs, scores
            )
        except Exception as error:
            return error

    def _logprobs(
        self, position: int, scheme: Scheme, alpha: float, token_id: int, top: int
    ) -> tuple[float, tuple[tuple[int, float], ...]]:
        """Log-probability of the chosen token under its composite, and of the `top` likeliest."""
        if self._spaces is None or scheme is Scheme.NONE:
            p = self._target.p[position]
            ids = torch.arange(len(p), device=p.device)
        else:
            space = self._spaces.union if scheme is Scheme.UNION else self._spaces.intersection
            here = self._space_of[position]
            space = space.at(slice(here, here + 1))
            p, ids = space.probabilities(alpha)[0], space.ids[0]
        log_p = p.log()
        best = log_p.topk(min(top, len(log_p)))
        likeliest = zip(ids[best.indices].tolist(), best.values.tolist(), strict=True)
        return float(log_p[ids == token_id].max()), tuple((i, value) for i, value in likeliest if value > -torch.inf)


def _draws_of(turns: Sequence[Turn], p_draft: Tensor, drafted: Tensor) -> Draws:
    """The random side of a round's P positions; `p_draft` is [P, V], `drafted` [P]."""
    places = [(turn.verifier, place) for turn in turns for place in turn.places]
    uniforms = [verifier.uniforms(place)[1:] for verifier, place in places]
    settings = [verifier.params for verifier, _ in places]
    return Draws(
        sampled=torch.tensor([verifier.is_sampled for verifier, _ in places], device=drafted.device),
        drafted=drafted,
        q_drafted=p_draft.gather(-1, drafted.clamp_min(0)[:, None])[:, 0],
        uniforms=torch.tensor(uniforms, dtype=torch.float64, device=drafted.device),
        truncation=truncation_of([(p.top_k, p.top_p) for p in settings], drafted.device),
    )
