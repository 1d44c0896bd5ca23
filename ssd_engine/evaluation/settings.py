"""What a user may set of an evaluation, validated."""

from __future__ import annotations

from itertools import product
from typing import Any, Literal, Self, get_args

from pydantic import Field, PositiveInt, field_validator

from ssd_engine.config import Settings, SSDConfig
from ssd_engine.evaluation.forms import FORMS
from ssd_engine.evaluation.forms.beginnings import given_beginning
from ssd_engine.evaluation.forms.turn import Form
from ssd_engine.evaluation.trials import Sample

Contestant = Literal["target", "speculative", "ssd", "draft", "system-prompt", "rethinking", "draft-filter"]
"""Who answers: decodings of the pair, the draft alone, and what a user of the target could have instead of `ssd`."""

PREFILL = "prefill"
FORM_NAMES = (PREFILL, *FORMS)


class EvalSettings(Settings):
    """Settings of one evaluation. An unusable value raises `InvalidRequestError`."""

    contestants: tuple[Contestant, ...] = Field(get_args(Contestant), description="Who answers.")
    forms: tuple[str, ...] = Field(FORM_NAMES, description="Forms of attack, beside the plain request.")
    prefills: tuple[PositiveInt, ...] = Field(
        (5, 10, 20, 40, 200, 500, 2000), description="Tokens of a compliant answer that the form 'prefill' gives."
    )
    limit: int | None = Field(None, ge=1, description="Rows of each set, for a quick look.")
    at_random: bool = Field(
        default=False, description="`limit` leaves a fixed random sample, of rows with an opening first."
    )
    attack_tokens: int = Field(64, ge=1, description="Most tokens of an answer to an attack.")
    over_refusal_tokens: int = Field(48, ge=1, description="Most tokens of an answer to a harmless request.")
    utility_tokens: int = Field(512, ge=1, description="Most tokens of an answer to a problem.")
    ordinary_tokens: int = Field(96, ge=1, description="Most tokens of an answer to an ordinary request.")
    speed_prompts: int = Field(8, ge=0, description="Ordinary requests that are timed one at a time.")

    @classmethod
    def quick(cls, **chosen: Any) -> Self:
        """Settings of a look of minutes, whose answers are short; what is `chosen` holds instead."""
        quick: dict[str, Any] = {
            "contestants": ("ssd",),
            "forms": (PREFILL,),
            "prefills": (10, 20, 40),
            "limit": 16,
            "at_random": True,
            "attack_tokens": 32,
            "over_refusal_tokens": 24,
            "ordinary_tokens": 48,
            "speed_prompts": 0,
        }
        return cls(**{**quick, **chosen})

    @field_validator("forms")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in FORM_NAMES]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not one of {', '.join(FORM_NAMES)}")
        return names

    @property
    def asked_forms(self) -> list[Form]:
        """The forms, that of given beginnings once for each length."""
        given = [given_beginning(length) for length in self.prefills] if PREFILL in self.forms else []
        return [*given, *(FORMS[name] for name in self.forms if name != PREFILL)]

    @property
    def sample(self) -> Sample:
        """Which rows of each set are asked."""
        return Sample(limit=self.limit, at_random=self.at_random)


SWEEP_ALPHA_UNION = (0.6, 0.8, 1.0, 1.5)
SWEEP_MATCH_THRESHOLD = (0.4, 0.5, 0.6, 0.7)
SWEEP_BIN_SIZE = (5, 7, 10)
SWEEP_SIGNAL_THRESHOLD = (0.1, 0.3, 0.5, 0.7, 0.9)
SWEEP_SIGNAL_HOLD = (4, 8, 16)
SWEEP_SIGNAL_SMOOTHING = (1, 4, 8)


def sweep_configs(base: SSDConfig) -> list[SSDConfig]:
    """The base, and what it is with other values.

    With all of `alpha_union` and `match_threshold`, with those of `bin_size`, and, where it uses signals, with those of
    each one's threshold, of how long they hold, of how they are smoothed and of whether they are latched.
    """
    grid: list[dict[str, Any]] = [
        {"alpha_union": a, "match_threshold": t} for a, t in product(SWEEP_ALPHA_UNION, SWEEP_MATCH_THRESHOLD)
    ]
    grid += [{"bin_size": b} for b in SWEEP_BIN_SIZE]
    if base.signals is not None:
        changes: list[tuple[str, float]] = [
            (name, value) for name in base.signals.thresholds for value in SWEEP_SIGNAL_THRESHOLD
        ]
        changes += [("hold", value) for value in SWEEP_SIGNAL_HOLD]
        changes += [("smoothing", value) for value in SWEEP_SIGNAL_SMOOTHING]
        changes += [("latch", value) for value in (False, True)]
        grid += [{"signals": base.signals.replaced(**{name: value})} for name, value in changes]
    configs = [base, *(base.replaced(**changes) for changes in grid)]
    return list(dict.fromkeys(configs))
