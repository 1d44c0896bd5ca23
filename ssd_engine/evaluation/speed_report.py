"""What a speed benchmark found: its rows, and how they are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ssd_engine.evaluation.contenders import Sample
from ssd_engine.evaluation.guided import GuidedReport


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender with so many requests at once, over all prompts. Times in seconds, memory in bytes."""

    name: str
    workload: str
    requests: int
    tokens_per_second: float
    """Of all requests together: the median over the groups of prompts that were asked at once."""
    tokens_per_second_each: float
    decoding_tokens_per_second: float | None
    """Of one request at once, after its first round."""
    ratio_to_baseline: float | None
    match_rate: float | None
    tokens_per_round: float | None
    seconds_per_round: float | None
    """The reading of the prompt included."""
    first_token: float
    first_token_p95: float
    peak_memory: int | None
    """None where the models are in processes of the library's own."""
    bytes_per_second: float | None
    """Of weights, read while decoding: a pass reads all of a model's, whatever the number of tokens."""
    share_of_bandwidth: float | None
    """Of what the machine reads at best."""
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

    def headlines(self) -> dict[str, float | None]:
        """What `ssd` decodes a second, in parts of what others do; None where one of them was not measured."""
        speeds = {
            (row.workload, row.name): row.decoding_tokens_per_second
            for row in self.rows
            if row.requests == 1 and row.decoding_tokens_per_second
        }
        int8 = any(name == "ssd, int8 both" for _, name in speeds)
        ssd, target = ("ssd, int8 both", "target, int8") if int8 else ("ssd", "target")

        def ratio(workload: str, others: Sequence[str]) -> float | None:
            found = [speeds[workload, name] for name in others if (workload, name) in speeds]
            own = speeds.get((workload, ssd))
            return own / max(found) if own and found else None

        return {
            "ordinary chat: ssd over this engine's target alone": ratio("chat", [target]),
            "ordinary chat: ssd over llama.cpp, target alone": ratio("chat", ["llama.cpp"]),
            "edits of files: ssd over this engine's target alone": ratio("edit", [target]),
            "edits of files: ssd over llama.cpp, the faster of alone and speculative": ratio(
                "edit", ["llama.cpp", "llama.cpp, speculative"]
            ),
        }

    @property
    def round_ratios(self) -> dict[int, float]:
        """By requests at once: how long a round with SSD takes on vLLM, of one with its own lossless rule."""
        seconds = {(row.name, row.requests): row.seconds_per_round for row in self.rows if row.seconds_per_round}
        return {
            requests: of_ssd / seconds["vllm, speculative", requests]
            for (name, requests), of_ssd in seconds.items()
            if name == "vllm, ssd" and ("vllm, speculative", requests) in seconds
        }
