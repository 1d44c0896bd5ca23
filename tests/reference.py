"""The algorithm written naively (sets and loops, no cache), to hold the engine against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from transformers import PreTrainedModel

from ssd_engine import Scheme, SSDConfig


@dataclass
class ReferenceRun:
    token_ids: list[int] = field(default_factory=list)
    matched: list[bool] = field(default_factory=list)
    schemes: list[Scheme] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    rounds: int = 0


def next_logits(model: PreTrainedModel, token_ids: list[int], vocab: int) -> list[float]:
    """What `model` says of the next token after `token_ids`, over the shared vocabulary, reading everything anew."""
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0, -1, :vocab].float().tolist()


def softmax(logits: list[float], temperature: float = 1.0) -> list[float]:
    return (torch.tensor(logits) / temperature).softmax(-1).tolist()


def next_probabilities(model: PreTrainedModel, token_ids: list[int], vocab: int) -> list[float]:
    """p(next token | token_ids)."""
    return softmax(next_logits(model, token_ids, vocab))


def ranking(scores: list[float]) -> list[int]:
    """Token ids by falling score (a logit, which orders tokens at every temperature); ties go to the lower id."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))


def intersection(target: list[float], draft: list[float], size: int) -> tuple[set[int], bool]:
    """The Intersection space from both models' scores, and whether the target's own choice stands (its top-k)."""
    by_target, by_draft = ranking(target), ranking(draft)
    top_target, top_draft = set(), set()
    for k in range(1, len(target) + 1):
        top_target.add(by_target[k - 1])
        top_draft.add(by_draft[k - 1])
        common = top_target & top_draft
        if len(common) >= min(size, len(target)):
            break
    if by_target[0] not in top_draft:
        return top_target, True
    return common, False


def union(target: list[float], draft: list[float], size: int) -> set[int]:
    return set(ranking(target)[:size]) | set(ranking(draft)[:size])


def composite(p_target: list[float], p_draft: list[float], space: set[int], alpha: float) -> dict[int, float]:
    target, draft = torch.tensor(p_target), torch.tensor(p_draft)
    values = target + alpha * (draft - target)
    return {i: values[i].item() for i in space}


def choose(
    p_target: list[float],
    p_draft: list[float],
    scheme: Scheme,
    alpha: float,
    size: int,
    logits: tuple[list[float], list[float]] | None = None,
) -> int:
    """The greedy choice; `logits` are what ranks go by, of target and draft (None: the probabilities)."""
    scores = logits or (p_target, p_draft)
    if scheme is Scheme.UNION:
        values = composite(p_target, p_draft, union(*scores, size), alpha)
    else:
        space, target_stands = intersection(*scores, size)
        if target_stands:
            return ranking(scores[0])[0]
        values = composite(p_target, p_draft, space, alpha)
    return min(values, key=lambda i: (-values[i], i))


def composite_distribution(
    p_target: list[float], p_draft: list[float], scheme: Scheme, config: SSDConfig
) -> dict[int, float]:
    """P of the first token, from the reference's sample spaces."""
    if scheme is Scheme.UNION:
        space, stands, alpha = union(p_target, p_draft, config.sample_space_size), False, config.alpha_union
    else:
        space, stands = intersection(p_target, p_draft, config.sample_space_size)
        alpha = config.alpha_intersection
    values = composite(p_target, p_draft, space, 0.0 if stands else alpha)
    weights = {i: max(0.0, value) for i, value in values.items()}
    total = sum(weights.values())
    return {i: weight / total for i, weight in weights.items() if weight > 0}


@dataclass
class ReferenceScheme:
    """Scheme control in fractions, from the decimals that the settings stand for."""

    config: SSDConfig
    scheme: Scheme = Scheme.INTERSECTION
    log: list[bool] = field(default_factory=list)
    ratios: list[Fraction] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.threshold = exact(self.config.match_threshold)
        self.alpha_intersection = exact(self.config.alpha_intersection)

    @property
    def alpha(self) -> float:
        return self.config.alpha_union if self.scheme is Scheme.UNION else float(self.alpha_intersection)

    def record(self, *, matched: bool) -> None:
        self.log.append(matched)
        if len(self.log) % self.config.bin_size:
            return
        ratio = Fraction(sum(self.log[-self.config.bin_size :]), self.config.bin_size)
        self.ratios.append(ratio)
        following = Scheme.UNION if ratio < self.threshold else Scheme.INTERSECTION
        if following is self.scheme:
            self.threshold = max(self.threshold - exact(self.config.threshold_decay), Fraction(0))
            if self.scheme is Scheme.INTERSECTION:
                lower = self.alpha_intersection - exact(self.config.alpha_decay)
                self.alpha_intersection = max(lower, exact(self.config.alpha_intersection_min))
        else:
            self._begin()
        self.scheme = following


def exact(setting: float) -> Fraction:
    """The decimal that a setting was written as."""
    return Fraction(repr(setting))


def run(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    prompt: list[int],
    draft_prompt: list[int],
    config: SSDConfig,
    max_new_tokens: int,
    eos_ids: set[int],
    carried: Callable[[list[int]], list[float]] | None = None,
) -> ReferenceRun:
    """Greedy SSD; `carried` is what a draft of another vocabulary says after some of the answer, as logits."""
    vocab = target.config.vocab_size if carried else min(target.config.vocab_size, draft.config.vocab_size)
    draft_says = carried or (lambda answer: next_logits(draft, draft_prompt + answer, vocab))
    result = ReferenceRun()
    control = ReferenceScheme(config)
    out = result.token_ids
    while len(out) < max_new_tokens and not (out and out[-1] in eos_ids):
        result.rounds += 1
        drafted: list[int] = []
        for _ in range(config.num_draft_tokens):
            drafted.append(ranking(draft_says(out + drafted))[0])
        for proposal in drafted:
            logits = next_logits(target, prompt + out, vocab), draft_says(out)
            p_target, p_draft = map(softmax, logits)
            token = choose(p_target, p_draft, control.scheme, control.alpha, config.sample_space_size, logits)
            out.append(token)
            result.schemes.append(control.scheme)
            result.matched.append(token == proposal)
            control.record(matched=token == proposal)
            if token != proposal or token in eos_ids or len(out) == max_new_tokens:
                break
    result.ratios = list(map(float, control.ratios))
    return result
