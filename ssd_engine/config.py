"""What a user may set, validated: `SSDConfig` for the algorithm, `GenerationParams` for one request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from ssd_engine.errors import InvalidRequestError

Decoding = Literal["ssd", "speculative", "target"]
Backend = Literal["transformers", "vllm"]
"""What runs the models: transformers in this process, or vLLM."""
RiskAction = Literal["annotate", "refuse", "raise"]
OnRisk = RiskAction | Callable[[Any], RiskAction | None]
"""What to do about risk; a function is given the `SafetyTrace`, in a thread of the request's own, where it may wait, or
ask the same engine. What it raises ends this request."""
REFUSAL_TEXT = "I can't help with that."
API_KEY_VARIABLE = "SSD_API_KEY"
"""The environment variable that has a server's key."""


class Settings(BaseModel):
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

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Python and pydantic take True for 1, which hides that a value stands in another one's place."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        kinds = {annotation, *get_args(annotation)}
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise ValueError("give a number")
        return value

    def replaced(self, **changes: Any) -> Self:
        """A copy with other values for some fields, validated as a new object is: raises `InvalidRequestError`."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**{**given, **changes})

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Pydantic's way to copy; unlike pydantic's own it validates `update`, as `replaced` does."""
        copied = super().model_copy(deep=deep)
        return copied.replaced(**update) if update else copied


Signal = Literal["refusal_mass", "probe", "kl"]
"""What says beside the match ratio that Union is wanted: see `ssd_engine.rule.signals`."""
SIGNALS: tuple[Signal, ...] = get_args(Signal)


class SignalConfig(Settings):
    """Which signals are used beside the match ratio: the threshold of each, in [0, 1]; None: it is not used."""

    refusal_mass: float | None = Field(None, ge=0, le=1, description="The draft's probability to begin a refusal here.")
    probe: float | None = Field(None, ge=0, le=1, description="The draft's linear probe, trained by ssd align.")
    kl: float | None = Field(
        None, ge=0, le=1, description="1 - exp(-KL), from the draft's distribution to the target's."
    )
    hold: int = Field(8, ge=1, description="Tokens under Union from an alarm on, the one at its place included.")
    smoothing: int = Field(
        1, ge=1, description="n: each score moves the mean that is compared by 1/n of the way; 1: scores as they are."
    )

    latch: bool = Field(
        default=False,
        description="An alarm within a given beginning (a prefilled answer) holds to the answer's first token, and "
        "there the draft's distribution is that of the place where it was surest to break the beginning off.",
    )

    @model_validator(mode="after")
    def _some_signal(self) -> SignalConfig:
        if not self.thresholds:
            raise ValueError(f"no signal has a threshold; give one of {', '.join(SIGNALS)}, or no signals at all")
        return self

    @property
    def thresholds(self) -> dict[Signal, float]:
        """The threshold of each signal that is used."""
        thresholds: dict[Signal, float] = {}
        for name in SIGNALS:
            threshold: float | None = getattr(self, name)
            if threshold is not None:
                thresholds[name] = threshold
        return thresholds

    @property
    def described(self) -> str:
        """The settings in a line."""
        smoothing = [f"smoothing {self.smoothing}"] if self.smoothing > 1 else []
        thresholds = [f"{name} {value:g}" for name, value in self.thresholds.items()]
        latch = ["latch"] if self.latch else []
        return ", ".join([*thresholds, f"hold {self.hold}", *smoothing, *latch])


class SSDConfig(Settings):
    """Settings of Speculative Safety-Aware Decoding (arXiv 2508.17739, sections 3 and 4).

    The defaults are the paper's settings for Llama-2 chat. An unusable value raises `InvalidRequestError`.
    """

    num_draft_tokens: int | Literal["auto"] = Field(
        3,
        description="L: tokens drafted in one round; 'auto' guesses from prompt and answers, and drafts while it pays. "
        "Answers do not depend on it.",
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
    signals: SignalConfig | None = Field(
        None, description="Signals that call for Union beside the match ratio; None: the published rule alone."
    )

    @field_validator("num_draft_tokens", mode="before")
    @classmethod
    def _number_or_auto(cls, value: Any) -> Any:
        if value == "auto" or (isinstance(value, int) and 1 <= value <= 64):
            return value
        raise ValueError("give a number from 1 to 64, or 'auto'")


UnsupportedContent = Literal["error", "placeholder"]
"""What becomes of content that a text model cannot read."""


class Grammar(Settings):
    """What an answer has to be; give one of the three. What is wrong with it shows when a request uses it."""

    json_schema: dict[str, Any] | None = Field(None, description="JSON Schema, or a pydantic model in its place.")
    regex: str | None = Field(None, description="Regular expression, in the syntax of Rust's regex crate.")
    lark: str | None = Field(None, description="Grammar in llguidance's dialect of Lark.")
    lenient: bool = Field(default=False, description="Pass over keywords of `json_schema` that cannot be enforced.")

    @field_validator("json_schema", mode="before")
    @classmethod
    def _schema_of(cls, schema: Any) -> Any:
        return schema.model_json_schema() if isinstance(schema, type) and issubclass(schema, BaseModel) else schema

    @model_validator(mode="after")
    def _one_of_three(self) -> Grammar:
        given = [name for name in ("json_schema", "regex", "lark") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of json_schema, regex and lark, not {', '.join(given) or 'none'}")
        return self


DEFAULT_NEW_TOKENS = 2048
"""Most tokens of an answer to a request that names no limit: a file that an agent writes fits in."""


class GenerationParams(Settings):
    """Settings of one request. An unusable value raises `InvalidRequestError`."""

    max_new_tokens: int | None = Field(
        None, ge=1, description="Most tokens to generate. None: what the context window has left, up to 2,048."
    )
    temperature: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="0 is greedy; above, both models' logits are divided by it."
    )
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus kept of the composite when sampling.")
    top_k: int | None = Field(None, ge=1, description="Most likely tokens kept of the composite when sampling.")
    stop: tuple[str, ...] = Field((), description="Strings that end the answer; they are never part of it.")
    seed: int | None = Field(None, ge=0, lt=2**63, description="Seed of this request's own random numbers.")
    decoding: Decoding = Field("ssd", description="'ssd', or a baseline in the same loop.")
    logprobs: bool = Field(default=False, description="Report the composite's log-probability of each token.")
    top_logprobs: int = Field(
        0, ge=0, le=20, description="With logprobs: likeliest alternatives reported at each token."
    )
    continue_final_message: bool = Field(default=False, description="Go on from the last assistant message.")
    template_kwargs: dict[str, Any] = Field(
        {}, description="Variables for the chat template, such as {'enable_thinking': False}; text in them stays text."
    )
    reasoning: bool | str | None = Field(
        None,
        description="Of models that reason before they answer: whether they do, or how much ('low', 'medium', 'high'); "
        "None: as the chat template has it.",
    )
    unsupported_content: UnsupportedContent = Field(
        "error",
        description="Images, audio and files in a user's message, which these models cannot read: 'error', or "
        "'placeholder', a note in their place.",
    )
    timeout: float | None = Field(
        None, gt=0, description="Seconds from submission after which the request fails; a server's client counts them."
    )
    ssd: SSDConfig | None = Field(None, description="This request's own SSD settings; None: the engine's.")
    grammar: Grammar | None = Field(None, description="What the answer has to be; tools on offer may be called first.")
    tool_choice: str = Field(
        "auto", description="'auto', 'any' (some tool is called), 'none' (no tool is offered), or the name of a tool."
    )
    parallel_tool_calls: bool = Field(default=True, description="Whether one answer may hold several calls.")
    strict: bool | None = Field(
        None,
        description="None: calls follow their tools' schemas, as far as these can be enforced; True: a schema that "
        "cannot be is an error; False: under tool_choice='auto' calls are not guided.",
    )
    on_risk: OnRisk = Field(
        "annotate",
        description="Once Union has held for `risk_bins` bins: go on, end with `refusal_text`, or raise "
        "`JailbreakRiskError`. A function gets the trace at each bin, and where a signal raises an alarm, instead, and "
        "returns one of these (None: go on).",
    )
    risk_bins: int = Field(
        2, ge=1, description="Bins of tokens under Union, one after the other, from which on `on_risk` acts."
    )
    refusal_text: str = Field(REFUSAL_TEXT, min_length=1, description="What an answer ends with that is refused.")

    @property
    def limit(self) -> int:
        """Most tokens to generate, where the context window has room for them."""
        return DEFAULT_NEW_TOKENS if self.max_new_tokens is None else self.max_new_tokens

    @field_validator("tool_choice", mode="before")
    @classmethod
    def _tool_choice_name(cls, choice: Any) -> Any:
        """Other words for the same: True and 'required', None and False, and OpenAI's and LangChain's mappings."""
        if isinstance(choice, dict):
            function = choice.get("function", choice)
            name = function.get("name") if isinstance(function, dict) else None
            choice = name or choice.get("type", choice)
        if choice is None or isinstance(choice, bool):
            return {None: "auto", True: "any", False: "none"}[choice]
        return "any" if choice == "required" else choice

    @field_serializer("on_risk", when_used="json")
    def _on_risk_name(self, on_risk: Any) -> str:
        if isinstance(on_risk, str):
            return on_risk
        named = on_risk if hasattr(on_risk, "__qualname__") else type(on_risk)  # objects that can be called have none
        return f"{named.__module__}.{named.__qualname__}"

    @field_validator("stop", mode="before")
    @classmethod
    def _as_tuple(cls, stop: Any) -> Any:
        if stop is None or isinstance(stop, str):
            return () if stop is None else (stop,)
        return tuple(stop) if isinstance(stop, Iterable) else stop

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError("an empty stop string would end every answer at once; leave it out")
        return stop
