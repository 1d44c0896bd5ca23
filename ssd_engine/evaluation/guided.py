"""What a grammar costs and saves: `ssd` under one beside `ssd` without, over answers of the same length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ssd_engine.config import Grammar
from ssd_engine.evaluation.contenders import HostProcess, Sample

ORDER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "customer": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "city": {"type": "string"}},
            "required": ["name", "city"],
        },
        "items": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "product": {"type": "string"},
                    "quantity": {"type": "integer"},
                    "priority": {"enum": ["standard", "express"]},
                },
                "required": ["product", "quantity", "priority"],
            },
            "minItems": 2,
            "maxItems": 2,
        },
        "needs_confirmation": {"type": "boolean"},
    },
    "required": ["customer", "items", "needs_confirmation"],
}
ORDERS = (
    "Anna Weber from Graz orders three lamps, and two chairs by express. No confirmation is needed.",
    "Luis Ortega in Sevilla wants ten notebooks and one printer, both standard. Please confirm.",
    "Mei Tanaka, Osaka: express order of four cables and one router, confirm it.",
    "Tom Baker from Leeds orders five mugs and a kettle by standard post, without confirmation.",
)
ANYTHING = Grammar(regex=r"(.|\n)*")


@dataclass(frozen=True)
class GuidedReport:
    """Medians over the orders, of the time after the first round."""

    json_tokens_per_second: float
    free_tokens_per_second: float
    """Of text as long as the JSON."""
    forced_share: float
    """Of the tokens of the JSON."""
    overhead: float
    """Of a round, where the grammar allows any text, and so changes no token."""


def measure(process: HostProcess) -> GuidedReport:
    """Ask for each order as JSON, then for as many tokens about it, without a grammar and with one that allows all."""
    grammar = Grammar(json_schema=ORDER)
    json_answers, free, allowed = [], [], []
    for order in ORDERS:
        [answer] = process.answer("ssd", _asking(f"Write this order as JSON: {order}"), 160, grammar=grammar)
        json_answers.append(answer)
        question = _asking(f"Write a short letter that thanks for this order: {order}")
        free += process.answer("ssd", question, answer.tokens)
        allowed += process.answer("ssd", question, answer.tokens, grammar=ANYTHING)
    return GuidedReport(
        json_tokens_per_second=_median(json_answers, _speed),
        free_tokens_per_second=_median(free, _speed),
        forced_share=_median(json_answers, lambda sample: sample.forced_tokens / sample.tokens),
        overhead=(_median(allowed, _selection) - _median(free, _selection)) / _median(free, _round),
    )


def _asking(text: str) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": text}]]


def _median(samples: Sequence[Sample], figure: Callable[[Sample], float]) -> float:
    return median(map(figure, samples))


def _speed(sample: Sample) -> float:
    later = sample.tokens - sample.first_round_tokens
    return later / (sample.total - sample.first_token) if later else 0.0


def _selection(sample: Sample) -> float:
    return sample.selection / sample.rounds


def _round(sample: Sample) -> float:
    return (sample.draft_forward + sample.target_forward + sample.selection) / sample.rounds
