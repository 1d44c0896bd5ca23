"""The speed benchmark: one run, the same prompts for all, in alternating order, medians."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from ssd_engine.config import SSDConfig
from ssd_engine.evaluation.contenders import Contender, ContenderProcess, Messages, Pair, Sample

PROMPTS = (
    "Explain in a few sentences how a bicycle stays upright.",
    "Write a Python function that merges two sorted lists into one sorted list.",
    "A shop sells pens at 3 for 2 euros. How much do 18 pens cost? Show the steps.",
    "Translate into French: 'The train to Lyon leaves at nine in the morning.'",
    "Write a short, polite e-mail that asks a colleague to move a meeting to Friday.",
    "List five differences between TCP and UDP.",
    "Summarise the story of the tortoise and the hare in three sentences.",
    'Give a JSON object that describes a book: "title", "author", "year" and "genres".',
)

GENERATE = Contender("generate", "transformers")
CONTENDERS = (
    GENERATE,
    Contender("assisted", "transformers", "speculative"),
    Contender("target", "ssd", "target"),
    Contender("ssd", "ssd", "ssd"),
    Contender("ssd, int8 draft", "ssd", "ssd", "int8"),
)


@dataclass(frozen=True)
class Row:
    """Medians of one contender over the prompts. Times in seconds, memory in bytes."""

    name: str
    tokens_per_second: float
    ratio_to_generate: float
    match_rate: float | None
    tokens_per_round: float | None
    first_token: float
    peak_memory: int
    share_of_bound: float | None
    share_of_rule: float | None


@dataclass(frozen=True)
class SecondTurn:
    """Time to first token of two turns of one conversation, in seconds."""

    history_tokens: int
    cached_tokens: int
    first: float
    second: float


@dataclass(frozen=True)
class Report:
    """One run of the benchmark."""

    rows: tuple[Row, ...]
    second_turn: SecondTurn
    environment: dict[str, Any]
    samples: dict[str, list[Sample]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run(
    pair: Pair,
    *,
    prompts: Sequence[str] = PROMPTS,
    max_new_tokens: int = 64,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Report:
    """Measure all contenders on one pair.

    Each contender answers in its own process; for every prompt the order of the contenders moves on by one.
    `progress` is told the contender, and how many answers of how many are made.
    """
    with ExitStack() as stack:
        processes = [stack.enter_context(closing(ContenderProcess(c, pair))) for c in CONTENDERS]
        for i, process in enumerate(processes):
            progress(f"warming up {process.contender.name}", i, len(processes))
            process.answer(_question("Say hello."), 8)
        samples: dict[str, list[Sample]] = {contender.name: [] for contender in CONTENDERS}
        total = len(prompts) * len(processes)
        for i, prompt in enumerate(prompts):
            for process in processes[i % len(processes) :] + processes[: i % len(processes)]:
                progress(process.contender.name, sum(map(len, samples.values())), total)
                samples[process.contender.name].append(process.answer(_question(prompt), max_new_tokens))
        second_turn = _second_turn(next(p for p in processes if p.contender.name == "ssd"))
    rows = tuple(_row(name, samples[name], samples[GENERATE.name], pair.config) for name in samples)
    return Report(rows, second_turn, _environment(pair, max_new_tokens, len(prompts)), samples)


def bound_tokens_per_second(samples: Sequence[Sample], num_draft_tokens: int) -> float:
    """The most that these forward passes and this match rate allow: E / (L t_m + t_M(L)), E = (1 - a^L) / (1 - a)."""
    rounds = sum(sample.rounds for sample in samples)
    seconds_a_round = sum(sample.draft_forward + sample.target_forward for sample in samples) / rounds
    tokens = sum(sample.tokens for sample in samples)
    acceptance = sum((sample.match_rate or 0.0) * sample.tokens for sample in samples) / tokens
    tokens_a_round = sum(acceptance**i for i in range(num_draft_tokens))
    return tokens_a_round / seconds_a_round


def _row(name: str, samples: list[Sample], generate: list[Sample], config: SSDConfig) -> Row:
    engine = [sample for sample in samples if sample.rounds]
    drafted = [sample for sample in engine if sample.match_rate is not None]
    decoded = sum(sample.tokens - sample.first_round_tokens for sample in drafted)
    decoding = sum(sample.total - sample.first_token for sample in drafted)
    return Row(
        name=name,
        tokens_per_second=median(sample.tokens_per_second for sample in samples),
        ratio_to_generate=median(
            sample.tokens_per_second / other.tokens_per_second for sample, other in zip(samples, generate, strict=True)
        ),
        match_rate=median(sample.match_rate or 0.0 for sample in drafted) if drafted else None,
        tokens_per_round=median(sample.tokens / sample.rounds for sample in engine) if engine else None,
        first_token=median(sample.first_token for sample in samples),
        peak_memory=max(sample.peak_memory for sample in samples),
        share_of_bound=(
            decoded / decoding / bound_tokens_per_second(drafted, config.num_draft_tokens) if drafted else None
        ),
        share_of_rule=sum(s.selection for s in drafted) / sum(s.total for s in drafted) if drafted else None,
    )


def _second_turn(process: ContenderProcess) -> SecondTurn:
    """Ask about a text of some 1,000 tokens, then ask again."""
    facts = "\n".join(f"{i}. Parcel {i} goes to house {i * 37 % 100} on street {i * 53 % 90}." for i in range(1, 51))
    first_turn = _question(f"{facts}\nWhich house does parcel 7 go to?")
    first = process.answer(first_turn, 24)
    follow_up = [
        *first_turn,
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "And parcel 8?"},
    ]
    second = process.answer(follow_up, 24)
    return SecondTurn(second.prompt_tokens, second.cached_tokens, first.first_token, second.first_token)


def _question(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def _environment(pair: Pair, max_new_tokens: int, num_prompts: int) -> dict[str, Any]:
    return {
        "date": datetime.date.today().isoformat(),
        "target": Path(pair.target).name,
        "draft": Path(pair.draft).name,
        "num_draft_tokens": pair.config.num_draft_tokens,
        "prompts": num_prompts,
        "max_new_tokens": max_new_tokens,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers", "ssd-integrations")},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
