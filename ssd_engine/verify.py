"""Step 3 of a round: which tokens stand, given both models' distributions and the drafted ids (paper, section 3.1).

A chosen token *matches* when it is the drafted one; the round ends after the first that does not. With sampling,
acceptance and recovery follow Leviathan et al. (arXiv 2211.17192), with the composite in the place of the target, so
every token is distributed exactly as the composite.

All sequences of a round are verified together. What may become of a position depends on the scheme in force there,
and that on the tokens before it; so the tensors answer for every scheme and weight that may be in force (usually one
weight of Intersection, and Union), and the scheme control picks among the answers. The tensors stay where the models
are; one small table of token ids comes to the host a round.

R is the number of sequences, P the number of positions of all (L each, or 1 where nothing is drafted), V the shared
vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ssd_engine.config import GenerationParams, SSDConfig
from ssd_engine.errors import SSDError
from ssd_engine.sample_space import SampleSpace, SampleSpaces, sample_spaces
from ssd_engine.sampling import accept_or_recover, draw, truncate
from ssd_engine.scheme import Bin, Scheme, SchemeController

NOT_NUMBERS = (
    "the models' probabilities are not numbers (NaN) here: this prompt is too much for their weights or dtype; "
    "try dtype='float32'"
)


@dataclass(frozen=True)
class Choice:
    """One token that stands."""

    token_id: int
    matched: bool
    scheme: Scheme
    bin: Bin | None
    """The match-ratio bin that this token completed."""
    is_forced: bool = False
    """Whether a grammar left no other token; such a token is no match, no mismatch, and in no bin."""
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    ends: Literal["stop", "length"] | None = None
    """Why the backend ends the answer with this token, where it does."""

    @property
    def next_scheme(self) -> Scheme:
        """The scheme in force after this token."""
        return self.scheme if self.bin is None else self.bin.next_scheme


class Verifier:
    """The rule of one sequence. It owns the sequence's scheme controller and random numbers.

    The random numbers belong to places in the answer: three for each token, to draft it, to accept it, to recover it.
    A draft that is thrown away had no part in the tokens before it, so its place's numbers are as good as new. A seed
    therefore gives the same answer whatever the number of drafts in a round.
    """

    def __init__(self, params: GenerationParams, config: SSDConfig, eos_ids: Collection[int]) -> None:
        self.params = params
        self.config = config
        self.controller = SchemeController(config)
        self._eos_ids = frozenset(eos_ids)
        generator = torch.Generator()
        if params.seed is None:
            generator.seed()
        else:
            generator.manual_seed(params.seed)
        places = params.max_new_tokens if params.temperature else 0
        self._uniforms = torch.rand(places, 3, generator=generator, dtype=torch.float64)

    @property
    def is_sampled(self) -> bool:
        return self.params.temperature > 0

    @property
    def drafts(self) -> bool:
        """Whether a draft proposes tokens; without one the target decodes alone."""
        return self.params.decoding != "target"

    def uniforms(self, place: int) -> list[float]:
        """The random numbers of one token of the answer: to draft, to accept, to recover."""
        numbers: list[float] = self._uniforms[place].tolist() if self.is_sampled else [0.0, 0.0, 0.0]
        return numbers

    def forced(self, token_ids: Sequence[int], before: Choice | None) -> list[Choice]:
        """Tokens that a grammar forces: certain, and so without a word on risk. `before` is the token before them."""
        scheme = self.controller.scheme if before is None else before.next_scheme
        if self.params.decoding != "ssd":
            scheme = Scheme.NONE
        logprob = 0.0 if self.params.logprobs else None
        return [Choice(i, matched=False, scheme=scheme, bin=None, is_forced=True, logprob=logprob) for i in token_ids]

    def settle(
        self, answers: Sequence[Callable[[Scheme, float], int]], drafted: Sequence[int], logprobs: LogprobsOf
    ) -> list[Choice]:
        """Go through a round's positions under the scheme control, until a token does not match or ends the answer.

        `answers` say, position by position, which token a scheme and its weight choose.
        """
        chosen: list[Choice] = []
        for position, (answer, proposal) in enumerate(zip(answers, drafted, strict=True)):
            # Read here, at the position itself: the scheme may have changed inside this round.
            scheme, alpha = self.controller.scheme, self.controller.alpha
            if self.params.decoding != "ssd":
                scheme = Scheme.NONE
            token_id = answer(scheme, alpha)
            matched = token_id == proposal
            logprob, top = logprobs(position, scheme, alpha, token_id) if self.params.logprobs else (None, ())
            completed = self.controller.record(matched) if scheme is not Scheme.NONE else None
            chosen.append(Choice(token_id, matched, scheme, completed, logprob=logprob, top_logprobs=top))
            if not matched or token_id in self._eos_ids:
                break
        return chosen


LogprobsOf = Callable[[int, Scheme, float, int], tuple[float, tuple[tuple[int, float], ...]]]


@dataclass(frozen=True)
class Turn:
    """One sequence's part in a round."""

    verifier: Verifier
    places: Sequence[int]
    """Of each position, the tokens of the answer before it: L positions, or one where the target decodes alone."""

    @property
    def num_positions(self) -> int:
        return len(self.places)


def first_positions(turns: Sequence[Turn]) -> list[int]:
    """Where each turn's positions begin among those of all turns."""
    return [0, *itertools.accumulate(turn.num_positions for turn in turns)][: len(turns)]


def probabilities(logits: Tensor, verifiers: Sequence[Verifier], allowed: Tensor | None = None) -> Tensor:
    """[P, V] float32 probabilities of `logits` [P, V], each at its sequence's temperature.

    Args:
        logits: [P, V].
        verifiers: P of them.
        allowed: [P, V] bool, the tokens that grammars allow; None: all.
    """
    if not any(verifier.is_sampled for verifier in verifiers):
        return tempered(logits, None, allowed)
    temperatures = [verifier.params.temperature or 1.0 for verifier in verifiers]
    return tempered(logits, torch.tensor(temperatures, device=logits.device), allowed)


def tempered(logits: Tensor, temperatures: Tensor | None, allowed: Tensor | None) -> Tensor:
    """[P, V] float32 softmax of `logits` [P, V] at `temperatures` [P] (None: 1), over `allowed` [P, V] (None: all)."""
    logits = logits.float()
    if temperatures is not None:
        logits = logits / temperatures[:, None]
    if allowed is None:
        return logits.softmax(-1)
    # The least there is keeps tokens that are allowed, however unlikely, in front of those that are not.
    p = logits.masked_fill(~allowed, -torch.inf).softmax(-1)
    return p + allowed * torch.finfo(p.dtype).tiny


def propose(p_draft: Tensor, verifiers: Sequence[Verifier], places: Sequence[int]) -> Tensor:
    """[R] the tokens that the draft proposes, from its `p_draft` [R, V], at the given places of the answers."""
    likeliest = p_draft.argmax(-1)  # the first, so the lowest id, of equals
    sampled = [verifier.is_sampled for verifier in verifiers]
    if not any(sampled):
        return likeliest
    uniforms = [verifier.uniforms(place)[0] for verifier, place in zip(verifiers, places, strict=True)]
    drawn = draw(p_draft, torch.tensor(uniforms, dtype=torch.float64, device=p_draft.device))
    return torch.where(torch.tensor(sampled, device=p_draft.device), drawn, likeliest)


def verify(
    turns: Sequence[Turn], p_target: Tensor, p_draft: Tensor, drafted: Tensor, allowed: Tensor | None = None
) -> list[list[Choice] | Exception]:
    """Choose the tokens that stand, for all sequences of a round.

    Args:
        turns: R sequences; each has its `num_positions` rows in the tensors, one sequence after the other.
        p_target: [P, V] p_M at the drafted positions.
        p_draft: [P, V] p_m at the same positions; zeros where nothing was drafted.
        drafted: [P] int64 drafted ids; -1 where nothing was drafted.
        allowed: [P, V] bool, the tokens that grammars allow; None: all.

    Returns:
        For each sequence its tokens, or what went wrong with it alone.
    """
    table = _Table(turns, p_target, p_draft, drafted, allowed)
    return [table.settle(index) for index in range(len(turns))]


def choose(space: SampleSpace, alpha: Tensor, draws: Draws | None) -> Tensor:
    """[P] token ids chosen from the composite with weights `alpha` [P]: the likeliest, or drawn where sampled."""
    values = space.composite(alpha)
    is_largest = values == values.amax(-1, keepdim=True)
    greedy = space.ids.masked_fill(~is_largest, torch.iinfo(torch.int64).max).amin(-1)
    if draws is None:
        return greedy
    return draws.choose(space.ids, space.probabilities(alpha), space.p_draft, greedy)


class _Table:
    """Every token that a round's positions may become, by scheme and weight, on the host."""

    def __init__(
        self, turns: Sequence[Turn], p_target: Tensor, p_draft: Tensor, drafted: Tensor, allowed: Tensor | None
    ) -> None:
        self._turns = turns
        self._firsts = first_positions(turns)
        self._positions = [turn for turn in turns for _ in range(turn.num_positions)]
        self._p_target = p_target
        self._alphas = [turn.verifier.controller.upcoming_alphas(turn.num_positions) for turn in turns]
        self._is_ssd = [turn.verifier.params.decoding == "ssd" for turn in self._positions]
        self._draws = Draws.of(turns, p_draft, drafted) if any(t.verifier.is_sampled for t in turns) else None
        # Where one logit is not a number, none of the probabilities is.
        columns = [drafted, (p_target[:, 0] + p_draft[:, 0]).isnan().to(drafted.dtype)]
        self._spaces: SampleSpaces | None = None
        if any(self._is_ssd):
            self._spaces = sample_spaces(p_target, p_draft, self._sizes(allowed))
            columns += self._composite_columns(self._spaces)
        if not all(self._is_ssd):
            columns.append(self._target_column(p_draft))
        # The one transfer of a round.
        self._rows: list[list[int]] = torch.stack(columns, dim=-1).tolist()

    def _sizes(self, allowed: Tensor | None) -> int | Tensor:
        """c at each position: where a grammar allows fewer tokens, all of these are the sample space."""
        sizes = [turn.verifier.config.sample_space_size for turn in self._positions]
        if allowed is None and len(set(sizes)) == 1:
            return sizes[0]
        size = torch.tensor(sizes, device=self._p_target.device)
        return size if allowed is None else torch.minimum(size, allowed.sum(-1))

    def settle(self, index: int) -> list[Choice] | Exception:
        """The tokens of sequence `index` that stand."""
        turn = self._turns[index]
        first = self._firsts[index]
        rows = self._rows[first : first + turn.num_positions]
        alphas = self._alphas[index]

        def answer(row: list[int]) -> Callable[[Scheme, float], int]:
            def token(scheme: Scheme, alpha: float) -> int:
                if row[1]:
                    raise SSDError(NOT_NUMBERS)
                if scheme is Scheme.NONE:
                    return row[-1]
                return row[2] if scheme is Scheme.UNION else row[3 + alphas.index(alpha)]

            return token

        def logprobs(
            position: int, scheme: Scheme, alpha: float, token_id: int
        ) -> tuple[float, tuple[tuple[int, float], ...]]:
            return self._logprobs(first + position, scheme, alpha, token_id, turn.verifier.params.top_logprobs)

        try:
            return turn.verifier.settle([answer(row) for row in rows], [row[0] for row in rows], logprobs)
        except Exception as error:
            return error

    def _composite_columns(self, spaces: SampleSpaces) -> list[Tensor]:
        """Union, then Intersection at each weight."""
        unions = [turn.verifier.config.alpha_union for turn in self._positions]
        columns = [self._choose(spaces.union, unions)]
        for column in range(max(map(len, self._alphas))):
            # Sequences with fewer weights than others have their last one again.
            alphas = [alphas[min(column, len(alphas) - 1)] for alphas in self._alphas]
            each = [a for a, turn in zip(alphas, self._turns, strict=True) for _ in range(turn.num_positions)]
            columns.append(self._choose(spaces.intersection, each))
        return columns

    def _choose(self, space: SampleSpace, alphas: Sequence[float]) -> Tensor:
        return choose(space, torch.tensor(alphas, device=space.ids.device), self._draws)

    def _target_column(self, p_draft: Tensor) -> Tensor:
        """What the lossless baselines choose: P = p_M."""
        greedy = self._p_target.argmax(-1)
        if self._draws is None:
            return greedy
        ids = torch.arange(self._p_target.shape[-1], device=greedy.device).expand_as(self._p_target)
        return self._draws.choose(ids, self._p_target, p_draft, greedy)

    def _logprobs(
        self, position: int, scheme: Scheme, alpha: float, token_id: int, top: int
    ) -> tuple[float, tuple[tuple[int, float], ...]]:
        """Log-probability of the chosen token under its composite, and of the `top` likeliest."""
        if scheme is Scheme.NONE or self._spaces is None:
            p = self._p_target[position]
            ids = torch.arange(len(p), device=p.device)
        else:
            space = self._spaces.union if scheme is Scheme.UNION else self._spaces.intersection
            space = space.at(slice(position, position + 1))
            p, ids = space.probabilities(alpha)[0], space.ids[0]
        log_p = p.log()
        best = log_p.topk(min(top, len(log_p)))
        likeliest = zip(ids[best.indices].tolist(), best.values.tolist(), strict=True)
        return float(log_p[ids == token_id].max()), tuple((i, value) for i, value in likeliest if value > -torch.inf)


@dataclass(frozen=True)
class Draws:
    """The random side of a round's P positions."""

    sampled: Tensor
    """[P] bool."""
    drafted: Tensor
    q_drafted: Tensor
    """[P] the draft's probability of `drafted`."""
    uniforms: Tensor
    """[P, 2] float64: to accept, to recover."""
    truncation: tuple[Tensor, Tensor] | None
    """[P] top-k and [P] top-p; None: everywhere all tokens are kept."""

    def at(self, here: Tensor) -> Draws:
        """Those of some of the positions, by their indices."""
        truncation = None if self.truncation is None else (self.truncation[0][here], self.truncation[1][here])
        return Draws(self.sampled[here], self.drafted[here], self.q_drafted[here], self.uniforms[here], truncation)

    @staticmethod
    def of(turns: Sequence[Turn], p_draft: Tensor, drafted: Tensor) -> Draws:
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

    def choose(self, ids: Tensor, p: Tensor, q: Tensor, greedy: Tensor) -> Tensor:
        """[P] sampled tokens of `ids` [P, n] with probabilities `p` [P, n], or the greedy choice."""
        if self.truncation is not None:
            p = truncate(p, *self.truncation)
        chosen = accept_or_recover(ids, p, q, self.drafted, self.q_drafted, self.uniforms)
        return torch.where(self.sampled, chosen, greedy)


def truncation_of(settings: Sequence[tuple[int | None, float]], device: torch.device) -> tuple[Tensor, Tensor] | None:
    """[P] top-k and [P] top-p as tensors; None where all of `settings` keep every token."""
    if all(top_k is None and top_p >= 1 for top_k, top_p in settings):
        return None
    largest = torch.iinfo(torch.int64).max
    top_k = torch.tensor([largest if top_k is None else top_k for top_k, _ in settings], device=device)
    return top_k, torch.tensor([top_p for _, top_p in settings], device=device)
