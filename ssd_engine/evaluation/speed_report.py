"""What a speed benchmark found: its rows, and how they are told."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ssd_engine.evaluation.contenders import Sample
from ssd_engine.evaluation.guided import GuidedReport


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender with so many requests at once, over all prompts. Times in seconds, memory in bytes."""

    name: str
    requests: int
    tokens_per_second: float
    """Of all requests together: the median over the groups of prompts that were asked at once."""
    tokens_per_second_each: float
    ratio_to_baseline: float | None
    match_rate: float | None
    tokens_per_round: float | None
    seconds_per_round: float | None
    """The reading of the prompt included."""
    first_token: float
    first_token_p95: float
    peak_memory: int | None
    """None where the models are in processes of the library's own."""
    share_of_bound: float | None
    share_of_rule: float | None


@dataclass(frozen=True, kw_only=True)
class SecondTurn:
    """Time to first token of two turns of one conversation, in seconds."""

    history_tokens: int
    cached_tokens: int
    first: float
    second: float


@dataclass(frozen=True, kw_only=True)
class ContextRow:
    """`ssd` after a prompt of so many tokens."""

    prompt_tokens: int
    first_token: float
    tokens_per_second: float
    """While decoding, the prompt's reading left out."""
    peak_memory: int


@dataclass(frozen=True)
class Report:
    """One run of the benchmark."""

    rows: tuple[Row, ...]
    contexts: tuple[ContextRow, ...]
    second_turn: SecondTurn | None
    """None where `ssd` was not among the contenders."""
    guided: GuidedReport | None
    """None in the same case."""
    environment: dict[str, Any]
    samples: dict[str, list[list[Sample]]]

    def to_json(self) -> dict[str, Any]:
        """For the report's JSON."""
        return asdict(self)

    @property
    def round_ratios(self) -> dict[int, float]:
        """By requests at once: how long a round with SSD takes on vLLM, of one with its own lossless rule."""
        seconds = {(row.name, row.requests): row.seconds_per_round for row in self.rows if row.seconds_per_round}
        return {
            requests: of_ssd / seconds["vllm, speculative", requests]
            for (name, requests), of_ssd in seconds.items()
            if name == "vllm, ssd" and ("vllm, speculative", requests) in seconds
        }
