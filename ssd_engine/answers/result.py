"""What a request gives back: `GenerationResult`, and `Piece` while streaming."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ssd_engine.rule.scheme import Bin, Scheme
from ssd_engine.rule.signals import Alarm
from ssd_engine.trace.safety_trace import SafetyTrace

FinishReason = Literal["stop", "length", "tool_calls", "refused"]


@dataclass(frozen=True)
class Usage:
    """Tokens of one request, as the target's tokenizer counts them."""

    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int = 0
    """Prompt tokens whose keys and values were reused instead of read."""
    reasoning_tokens: int = 0
    """Those of the answer's tokens that are reasoning, its tags included."""

    @property
    def total_tokens(self) -> int:
        """Prompt and answer together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probability of a chosen token under the composite that it was chosen from."""

    token_id: int
    token: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()
    """(token id, token, log-probability) of the likeliest tokens, best first."""


@dataclass(frozen=True)
class ToolCall:
    """A tool call that the model wrote. `id` is unique to the call."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class InvalidToolCall:
    """Text that began as a tool call and is none; `error` says why."""

    id: str
    name: str | None
    text: str
    error: str


@dataclass(frozen=True)
class Piece:
    """What one round added to a streamed answer.

    `text` never holds a part of a character, of a stop string, of a tool call or of reasoning. The last piece carries
    `result`.
    """

    text: str = ""
    reasoning: str = ""
    """What models that reason before they answer have written of it."""
    token_ids: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    """What each token decodes to, as in `SafetyTrace.texts`."""
    schemes: tuple[Scheme, ...] = ()
    matched: tuple[bool, ...] = ()
    forced: tuple[bool, ...] = ()
    bins: tuple[Bin, ...] = ()
    """Match-ratio bins that were completed."""
    risk_scores: tuple[float, ...] = ()
    """The highest of the signals' scores before each token; empty where no signals are used."""
    alarms: tuple[Alarm, ...] = ()
    """Where signals began to ask for Union; with the first tokens, also in a given beginning."""
    tool_calls: tuple[ToolCall, ...] = ()
    invalid_tool_calls: tuple[InvalidToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    result: GenerationResult | None = None


@dataclass(frozen=True)
class GenerationResult:
    """A finished answer. `text` leaves out reasoning, tool calls, control tokens and the stop string.

    Of an answer that was refused, `text` is the refusal alone; what had been written before is in `trace.texts`.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    """"length": `max_new_tokens` came first, so that a grammar may not have come to its end. "refused": `on_risk`."""
    usage: Usage
    trace: SafetyTrace
    tool_calls: tuple[ToolCall, ...] = ()
    invalid_tool_calls: tuple[InvalidToolCall, ...] = ()
    reasoning: str = ""
    """What the model wrote before its answer to find it; empty for models that do not reason, and of a refusal."""
    logprobs: list[TokenLogprob] | None = None
    timings: Timings = field(default_factory=lambda: Timings())


@dataclass
class Timings:
    """Wall-clock seconds of one request, measured where the work is done."""

    first_token: float = 0.0
    """From submission to the end of the first round."""
    total: float = 0.0
    """From submission to the end."""
    draft_forward: float = 0.0
    """In the draft's forward passes. Sequences that decode together share passes, and each counts their whole time."""
    draft_passes: int = 0
    """How many of them there were; not told on vLLM."""
    target_forward: float = 0.0
    """In the target's forward passes."""
    selection: float = 0.0
    """In the rule itself: sample spaces, composite, scheme control."""
