"""One answer in the making: chosen tokens -> text pieces, tool calls, trace and result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from ssd_engine.answers.call_json import before_repetition
from ssd_engine.answers.detokenizer import StopStrings
from ssd_engine.answers.parsed_text import ParsedText, TextParser
from ssd_engine.answers.reasoning import num_reasoning_tokens
from ssd_engine.answers.result import (
    FinishReason,
    GenerationResult,
    InvalidToolCall,
    Piece,
    Timings,
    TokenLogprob,
    ToolCall,
    Usage,
)
from ssd_engine.answers.risk import risk_action, risk_error
from ssd_engine.config import GenerationParams, SSDConfig
from ssd_engine.errors import JailbreakRiskError
from ssd_engine.trace.safety_trace import SafetyTrace

if TYPE_CHECKING:
    from ssd_engine.rule.choice import Choice
    from ssd_engine.rule.signals import Look


class TextSource(Protocol):
    """What says, id by id, what an answer's tokens add to its text, as a `Detokenizer` does."""

    def feed(self, token_id: int) -> str:
        """The text that became certain with `token_id`."""

    def finish(self) -> str:
        """The text that was held back."""


@dataclass(frozen=True)
class AnswerSettings:
    """What turns token ids into an answer."""

    params: GenerationParams
    config: SSDConfig
    eos_ids: frozenset[int]
    detokenizer: TextSource
    parser: TextParser | None
    """What reads calls and reasoning; None: all is text."""
    decode_token: Callable[[int], str]


class Answer:
    """Collects the tokens of one answer, round by round."""

    def __init__(self, settings: AnswerSettings) -> None:
        self._settings = settings
        self._stop = StopStrings(settings.params.stop)
        self._token_ids: list[int] = []
        self._texts: list[str] = []
        self._calls: list[ToolCall] = []
        self._invalid_calls: list[InvalidToolCall] = []
        self._reasoning: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._ended: FinishReason | None = None
        self.error: JailbreakRiskError | None = None
        """What the caller asked to be raised."""
        signals = settings.config.signals if settings.params.decoding == "ssd" else None
        self.trace = SafetyTrace(
            decoding=settings.params.decoding,
            bin_size=settings.config.bin_size,
            signal_thresholds=signals.thresholds if signals is not None else {},
        )

    @property
    def is_finished(self) -> bool:
        """Whether nothing more can be added."""
        return self._ended is not None

    def ends_at(self, choice: Choice, num_tokens: int) -> bool:
        """Whether an answer of `num_tokens` tokens ends with `choice`, whatever its text."""
        settings = self._settings
        is_end = choice.ends is not None or choice.token_id in settings.eos_ids
        return is_end or num_tokens >= settings.params.limit

    def begin(self, looks: Sequence[Look]) -> None:
        """Take in what signals said over a given beginning, before the first round."""
        self.trace.begin(looks)

    def add_round(self, choices: Sequence[Choice]) -> Piece:
        """Take in one round's tokens; those after the end of a stop string, or after a refusal, are dropped."""
        before, bins_before = len(self._token_ids), len(self.trace.bins)
        alarms_before = len(self.trace.alarms) if before else 0
        visible = ""
        for choice in choices:
            if not (self.is_finished or self.error):
                visible += self._add(choice)
        self.trace.round_sizes.append(len(self._token_ids) - before)
        parsed = self._refusal() if self._ended == "refused" else self._parse(visible + self._finish_text())
        if self.error is not None:
            self.error.text = "".join(self._texts)
        new = slice(before, None)
        return Piece(
            text=parsed.text,
            reasoning=parsed.reasoning,
            token_ids=tuple(self._token_ids[new]),
            texts=tuple(self.trace.texts[new]),
            schemes=tuple(self.trace.schemes[new]),
            matched=tuple(self.trace.matched[new]),
            forced=tuple(self.trace.forced[new]),
            bins=tuple(self.trace.bins[bins_before:]),
            risk_scores=tuple(self.trace.risk_scores[new]),
            alarms=tuple(self.trace.alarms[alarms_before:]),
            tool_calls=parsed.tool_calls,
            invalid_tool_calls=parsed.invalid_tool_calls,
            logprobs=tuple(self._logprobs[new]),
        )

    def result(self, prompt_tokens: int, cached_prompt_tokens: int, timings: Timings) -> GenerationResult:
        """The finished answer."""
        assert self._ended is not None
        is_refused = self._ended == "refused"
        return GenerationResult(
            text=self._settings.params.refusal_text if is_refused else "".join(self._texts),
            token_ids=self._token_ids,
            finish_reason="tool_calls" if self._calls else self._ended,
            usage=Usage(prompt_tokens, len(self._token_ids), cached_prompt_tokens, self._num_reasoning_tokens()),
            trace=self.trace,
            tool_calls=tuple(self._calls),
            invalid_tool_calls=tuple(self._invalid_calls),
            reasoning="" if is_refused else "".join(self._reasoning),
            logprobs=self._logprobs if self._settings.params.logprobs else None,
            timings=timings,
        )

    def _add(self, choice: Choice) -> str:
        """Enter one token; returns the text that it makes certain."""
        num_alarms = len(self.trace.alarms) if self._token_ids else 0  # those of a given beginning are told now
        self._token_ids.append(choice.token_id)
        self.trace.look(choice.look)
        self.trace.schemes.append(choice.scheme)
        self.trace.matched.append(choice.matched)
        self.trace.forced.append(choice.is_forced)
        if choice.bridge_mass is not None:
            self.trace.bridge_mass.append(choice.bridge_mass)
        if choice.logprob is not None:
            self._logprobs.append(self._token_logprob(choice, choice.logprob))
        text = self._settings.detokenizer.feed(choice.token_id)
        self.trace.texts.append(text)
        visible = self._stop.feed(text)
        if self._stop.found or choice.token_id in self._settings.eos_ids:
            self._ended = "stop"
        elif len(self._token_ids) == self._settings.params.limit:
            self._ended = "length"
        elif choice.ends is not None:
            self._ended = choice.ends
        if choice.bin is not None:
            self.trace.bins.append(choice.bin)
            self.trace.bin_ends.append(len(self._token_ids))
        has_alarm = len(self.trace.alarms) > num_alarms
        counts_tokens = bool(self.trace.signal_thresholds) and isinstance(self._settings.params.on_risk, str)
        if choice.bin is not None or has_alarm or counts_tokens:
            self._act_on_risk()
        return visible

    def _act_on_risk(self) -> None:
        """Do what the request wants done at the end of a bin, or where a signal has raised an alarm."""
        action = risk_action(self._settings.params, self.trace)
        if action == "refuse":
            self._ended = "refused"
        elif action == "raise":
            self._ended = None  # also where this was the last token: no result, and no calls
            self.error = risk_error(self.trace)

    def _refusal(self) -> ParsedText:
        """What ends an answer that is refused; calls that were held back are no more."""
        self._calls, self._invalid_calls = [], []
        separator = "\n\n" if any(self._texts) else ""
        return ParsedText(separator + self._settings.params.refusal_text)

    def _finish_text(self) -> str:
        """The text that was held back, for a character or a stop string that never came to its end."""
        if not self.is_finished:
            return ""
        rest = self._settings.detokenizer.finish()
        self.trace.texts[-1] += rest
        visible = self._stop.feed(rest) + self._stop.finish()
        if self._stop.found:
            self._ended = "stop"
        return visible

    def _parse(self, text: str) -> ParsedText:
        """What became certain with `text`. Calls that may yet be refused come with the end of the answer."""
        parser = self._settings.parser
        parsed = ParsedText(text) if parser is None else parser.feed(text)
        if parser is not None and self.is_finished:
            parsed += parser.finish()
        if not self._settings.params.parallel_tool_calls:  # not every call is guided: there may be more
            parsed = replace(parsed, tool_calls=parsed.tool_calls[: 0 if self._calls else 1])
        if self._settings.params.tool_choice not in ("auto", "none"):
            parsed = self._without_repetition(parsed)
        self._texts.append(parsed.text)
        self._reasoning.append(parsed.reasoning)
        self._calls += parsed.tool_calls
        self._invalid_calls += parsed.invalid_tool_calls
        if self._settings.params.on_risk == "annotate":
            return parsed
        if self.is_finished:
            return replace(parsed, tool_calls=tuple(self._calls), invalid_tool_calls=tuple(self._invalid_calls))
        return ParsedText(parsed.text, reasoning=parsed.reasoning)

    def _without_repetition(self, parsed: ParsedText) -> ParsedText:
        """What comes before a call that the answer has made already; there it ends."""
        calls = before_repetition(self._calls, parsed.tool_calls)
        if len(calls) == len(parsed.tool_calls):
            return parsed
        self._ended = self._ended or "stop"
        return replace(parsed, tool_calls=calls, invalid_tool_calls=())

    def _num_reasoning_tokens(self) -> int:
        """How many tokens begin within the reasoning."""
        parser = self._settings.parser
        return num_reasoning_tokens(self.trace.texts, parser.spans) if parser is not None else 0

    def _token_logprob(self, choice: Choice, logprob: float) -> TokenLogprob:
        decode = self._settings.decode_token
        top = tuple((token_id, decode(token_id), value) for token_id, value in choice.top_logprobs)
        return TokenLogprob(choice.token_id, decode(choice.token_id), logprob, top)
