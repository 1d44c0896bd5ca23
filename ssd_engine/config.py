"""What a user may set, validated: `SSDConfig` for the algorithm, `GenerationParams` for one request."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ssd_engine.errors import InvalidRequestError

Decoding = Literal["ssd", "speculative", "target"]


class _Settings(BaseModel):
    """Immutable settings whose mistakes are reported as `InvalidRequestError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            problems = (
                f"{'.'.join(map(str, e['loc']))}={e['input']!r}: {e['msg'].removeprefix('Value error, ')}"
                for e in error.errors()
            )
            raise InvalidRequestError(f"{type(self).__name__}: {'; '.join(problems)}") from error


class SSDConfig(_Settings):
    """Settings of Speculative Safety-Aware Decoding (arXiv 2508.17739, sections 3 and 4).

    The defaults are the paper's settings for Llama-2 chat. An unusable value raises `InvalidRequestError`.
    """

    num_draft_tokens: int | Literal["auto"] = Field(
        3,
        description="L: tokens drafted in one round; 'auto' chooses what is fastest here. Answers do not depend on it.",
    )
    sample_space_size: int = Field(10, ge=1, description="c: size of the sample space.")
    alpha_intersection: float = Field(0.3, ge=0, allow_inf_nan=False, description="Draft weight under Intersection.")
    alpha_union: float = Field(0.8, ge=0, allow_inf_nan=False, description="Draft weight under Union; may exceed 1.")
    bin_size: int = Field(7, ge=1, description="b: tokens in one match-ratio bin.")
    match_threshold: float = Field(0.6, ge=0, le=1, description="Threshold after every switch of scheme.")
    threshold_decay: float = Field(0.1, ge=0, le=1, description="Taken off the threshold when a bin keeps its scheme.")
    alpha_decay: float = Field(0.15, ge=0, description="Taken off alpha_intersection when a bin stays in Intersection.")
    alpha_intersection_min: float = Field(0.3, ge=0, description="Floor of the decaying alpha_intersection.")
    draft_system_prompt: str | None = Field(
        None, description="System prompt that only the draft sees, before the conversation's own."
    )

    @field_validator("num_draft_tokens", mode="before")
    @classmethod
    def _number_or_auto(cls, value: Any) -> Any:
        if value == "auto" or (isinstance(value, int) and 1 <= value <= 64):
            return value
        raise ValueError("give a number from 1 to 64, or 'auto'")


class GenerationParams(_Settings):
    """Settings of one request. An unusable value raises `InvalidRequestError`."""

    max_new_tokens: int = Field(512, ge=1, description="Most tokens to generate.")
    temperature: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="0 is greedy; above, both models' logits are divided by it."
    )
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus kept of the composite when sampling.")
    top_k: int | None = Field(None, ge=1, description="Most likely tokens kept of the composite when sampling.")
    stop: tuple[str, ...] = Field((), description="Strings that end the answer; they are never part of it.")
    seed: int | None = Field(None, ge=0, lt=2**63, description="Seed of this request's own random numbers.")
    decoding: Decoding = Field("ssd", description="'ssd', or a baseline in the same loop.")
    logprobs: bool = Field(False, description="Report the composite's log-probability of each token.")
    top_logprobs: int = Field(
        0, ge=0, le=20, description="With logprobs: likeliest alternatives reported at each token."
    )
    continue_final_message: bool = Field(False, description="Go on from the last assistant message.")
    timeout: float | None = Field(None, gt=0, description="Seconds from submission after which the request fails.")
    ssd: SSDConfig | None = Field(None, description="This request's own SSD settings; None: the engine's.")

    @field_validator("stop", mode="before")
    @classmethod
    def _as_tuple(cls, stop: Any) -> Any:
        return () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError("an empty stop string would end every answer at once; leave it out")
        return stop
