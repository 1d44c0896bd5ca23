"""What a user may set of an evaluation, validated."""

from __future__ import annotations

from itertools import product
from typing import Literal, get_args

from pydantic import Field, PositiveInt, field_validator

from ssd_engine.config import Settings, SSDConfig
from ssd_engine.evaluation.attacks import TEMPLATES

Contestant = Literal["target", "speculative", "ssd", "draft", "system-prompt", "rethinking", "draft-filter"]
"""Who answers: decodings of the pair, the draft alone, and what a user of the target could have instead of `ssd`."""


class EvalSettings(Settings):
    """Settings of one evaluation. An unusable value raises `InvalidRequestError`."""

    contestants: tuple[Contestant, ...] = Field(get_args(Contestant), description="Who answers.")
    prefills: tuple[PositiveInt, ...] = Field((5, 10, 20, 40), description="Tokens of a compliant answer, given.")
    templates: tuple[str, ...] = Field(tuple(TEMPLATES), description="Jailbreak templates.")
    limit: int | None = Field(None, ge=1, description="Rows of each set, for a quick look.")
    attack_tokens: int = Field(64, ge=1, description="Most tokens of an answer to an attack.")
    over_refusal_tokens: int = Field(48, ge=1, description="Most tokens of an answer to a harmless request.")
    utility_tokens: int = Field(512, ge=1, description="Most tokens of an answer to a problem.")
    ordinary_tokens: int = Field(96, ge=1, description="Most tokens of an answer to an ordinary request.")
    speed_prompts: int = Field(8, ge=0, description="Ordinary requests that are timed one at a time.")

    @field_validator("templates")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in TEMPLATES]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not one of {', '.join(TEMPLATES)}")
        return names


SWEEP_ALPHA_UNION = (0.6, 0.8, 1.0, 1.5)
SWEEP_MATCH_THRESHOLD = (0.4, 0.5, 0.6, 0.7)
SWEEP_BIN_SIZE = (5, 7, 10)


def sweep_configs(base: SSDConfig) -> list[SSDConfig]:
    """The base, and what it is with all values of `alpha_union` and `match_threshold`, and of `bin_size`."""
    grid = [{"alpha_union": a, "match_threshold": t} for a, t in product(SWEEP_ALPHA_UNION, SWEEP_MATCH_THRESHOLD)]
    grid += [{"bin_size": b} for b in SWEEP_BIN_SIZE]
    configs = [base, *(base.replaced(**changes) for changes in grid)]
    return list(dict.fromkeys(configs))
