"""The algorithm written naively (sets and loops, no cache), to hold the engine against."""

from __future__ import annotations

from dataclasses import dataclass, field

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


def next_probabilities(model: PreTrainedModel, token_ids: list[int], vocab: int) -> list[float]:
    """p(next token | token_ids) over the shared vocabulary, reading everything anew."""
    with torch.no_grad():
        logits = model(torch.tensor([token_ids])).logits[0, -1, :vocab].float()
    return logits.softmax(-1).tolist()


def ranking(probabilities: list[float]) -> list[int]:
    """Token ids by falling probability; ties go to the lower id."""
    return sorted(range(len(probabilities)), key=lambda i: (-probabilities[i], i))


def intersection(p_target: list[float], p_draft: list[float], size: int) -> tuple[set[int], bool]:
    """The Intersection space, and whether the target's own choice stands (the space is then its top-k)."""
    by_target, by_draft = ranking(p_target), ranking(p_draft)
    top_target, top_draft = set(), set()
    for k in range(1, len(p_target) + 1):
        top_target.add(by_target[k - 1])
        top_draft.add(by_draft[k - 1])
        common = top_target & top_draft
        if len(common) >= min(size, len(p_target)):
            break
    if by_target[0] not in top_draft:
        return top_target, True
    return common, False


def union(p_target: list[float], p_draft: list[float], size: int) -> set[int]:
    return set(ranking(p_target)[:size]) | set(ranking(p_draft)[:size])


def composite(p_target: list[float], p_draft: list[float], space: set[int], alpha: float) -> dict[int, float]:
    target, draft = torch.tensor(p_target), torch.tensor(p_draft)
    values = target + alpha * (draft - target)
    return {i: values[i].item() for i in space}


def choose(p_target: list[float], p_draft: list[float], scheme: Scheme, alpha: float, size: int) -> int:
    if scheme is Scheme.UNION:
        values = composite(p_target, p_draft, union(p_target, p_draft, size), alpha)
    else:
        space, target_stands = intersection(p_target, p_draft, size)
        values = composite(p_target, p_draft, space, 0.0 if target_stands else alpha)
    return min(values, key=lambda i: (-values[i], i))


def run(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    prompt: list[int],
    draft_prompt: list[int],
    config: SSDConfig,
    max_new_tokens: int,
    eos_ids: set[int],
) -> ReferenceRun:
    """Greedy SSD."""
    vocab = min(target.config.vocab_size, draft.config.vocab_size)
    result = ReferenceRun()
    scheme, threshold, alpha_i = Scheme.INTERSECTION, config.match_threshold, config.alpha_intersection
    out = result.token_ids
    while len(out) < max_new_tokens and not (out and out[-1] in eos_ids):
        result.rounds += 1
        drafted: list[int] = []
        for _ in range(config.num_draft_tokens):
            drafted.append(ranking(next_probabilities(draft, draft_prompt + out + drafted, vocab))[0])
        for proposal in drafted:
            p_target = next_probabilities(target, prompt + out, vocab)
            p_draft = next_probabilities(draft, draft_prompt + out, vocab)
            alpha = config.alpha_union if scheme is Scheme.UNION else alpha_i
            token = choose(p_target, p_draft, scheme, alpha, config.sample_space_size)
            out.append(token)
            result.schemes.append(scheme)
            result.matched.append(token == proposal)
            if len(result.matched) % config.bin_size == 0:
                ratio = sum(result.matched[-config.bin_size :]) / config.bin_size
                result.ratios.append(ratio)
                following = Scheme.UNION if ratio < threshold else Scheme.INTERSECTION
                if following is scheme:
                    threshold = max(threshold - config.threshold_decay, 0)
                    if scheme is Scheme.INTERSECTION:
                        alpha_i = max(alpha_i - config.alpha_decay, config.alpha_intersection_min)
                else:
                    threshold, alpha_i = config.match_threshold, config.alpha_intersection
                scheme = following
            if token != proposal or token in eos_ids or len(out) == max_new_tokens:
                break
    return result
