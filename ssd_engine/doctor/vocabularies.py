"""How far the vocabularies of a target and a draft have the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from transformers import PreTrainedTokenizerBase

from ssd_engine.bridge.between import bridge_between, vocabulary
from ssd_engine.evaluation.workloads import WORKLOADS, prompts_of
from ssd_engine.serving.intake import ModelFacts, end_of_sequence_ids


@dataclass(frozen=True, kw_only=True)
class VocabularyMatch:
    """Two vocabularies, side by side."""

    target_tokens: int
    """Tokens of text that the target has."""
    draft_tokens: int
    shared_tokens: int
    """That both have."""
    shared_text: float
    """Share of the target's tokens in ordinary text that the draft has too."""
    reading_ratio: float
    """Tokens that the draft reads for one of the target's, in ordinary text."""

    @classmethod
    def of(cls, target: ModelFacts, draft: ModelFacts) -> Self | None:
        """Compare two models' vocabularies; None: they have one. Raises `VocabularyMismatchError` where none fits."""
        sides = (
            vocabulary(facts.tokenizer, facts.vocabulary_size, end_of_sequence_ids(None, facts.tokenizer))
            for facts in (target, draft)
        )
        bridge = bridge_between(*sides)
        if bridge is None:
            return None
        written = _ordinary_ids(target.tokenizer)
        sizes = bridge.sizes
        return cls(
            target_tokens=sizes[0],
            draft_tokens=sizes[1],
            shared_tokens=bridge.num_shared,
            shared_text=sum(map(bridge.is_shared, written)) / len(written),
            reading_ratio=len(bridge.readings(written)) / len(written),
        )


def _ordinary_ids(tokenizer: PreTrainedTokenizerBase) -> Sequence[int]:
    """The benchmark's prompts in a model's tokens."""
    texts = "\n\n".join(str(prompt) for workload in WORKLOADS for prompt in prompts_of(workload))
    token_ids: list[int] = tokenizer.encode(texts, add_special_tokens=False)
    return token_ids
