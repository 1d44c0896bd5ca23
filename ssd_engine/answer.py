"""One answer in the making: chosen tokens -> text pieces, tool calls, trace and result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssd_engine.config import GenerationParams
from ssd_engine.detokenizer import Detokenizer, StopStrings
from ssd_engine.result import (
    FinishReason,
    GenerationResult,
    InvalidToolCall,
    Piece,
    Timings,
    TokenLogprob,
    ToolCall,
    Usage,
)
from ssd_engine.tool_calls import ParsedText, ToolCallParser
from ssd_engine.trace import SafetyTrace

if TYPE_CHECKING:
    from ssd_engine.verify import Choice


@dataclass(frozen=True)
class AnswerSettings:
    """What turns token ids into an answer."""

    params: GenerationParams
    bin_size: int
    eos_ids: frozenset[int]
    detokenizer: Detokenizer
    tool_parser: ToolCallParser | None
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
        self._logprobs: list[TokenLogprob] = []
        self._ended: FinishReason | None = None
        self.trace = SafetyTrace(decoding=settings.params.decoding, bin_size=settings.bin_size)

    @property
    def is_finished(self) -> bool:
        return self._ended is not None

    def add_round(self, choices: Sequence[Choice]) -> Piece:
        """Take in one round's tokens; those after the end of a stop string are dropped."""
        before = len(self._token_ids)
        visible = ""
        for choice in choices:
            if not self.is_finished:
                visible += self._add(choice)
        added = len(self._token_ids) - before
        self.trace.round_sizes.append(added)
        if self.is_finished:
            visible += self._finish_text()
        parsed = self._parse(visible)
        self._texts.append(parsed.text)
        self._calls += parsed.tool_calls
        self._invalid_calls += parsed.invalid_tool_calls
        new = slice(before, None)
        return Piece(
            text=parsed.text,
            token_ids=tuple(self._token_ids[new]),
            texts=tuple(self.trace.texts[new]),
            schemes=tuple(self.trace.schemes[new]),
            matched=tuple(self.trace.matched[new]),
            tool_calls=parsed.tool_calls,
            invalid_tool_calls=parsed.invalid_tool_calls,
            logprobs=tuple(self._logprobs[new]),
        )

    def result(self, prompt_tokens: int, cached_prompt_tokens: int, timings: Timings) -> GenerationResult:
        """The finished answer."""
        assert self._ended is not None
        return GenerationResult(
            text="".join(self._texts),
            token_ids=self._token_ids,
            finish_reason="tool_calls" if self._calls else self._ended,
            usage=Usage(prompt_tokens, len(self._token_ids), cached_prompt_tokens),
            trace=self.trace,
            tool_calls=tuple(self._calls),
            invalid_tool_calls=tuple(self._invalid_calls),
            logprobs=self._logprobs if self._settings.params.logprobs else None,
            timings=timings,
        )

    def _add(self, choice: Choice) -> str:
        """Enter one token; returns the text that it makes certain."""
        self._token_ids.append(choice.token_id)
        self.trace.schemes.append(choice.scheme)
        self.trace.matched.append(choice.matched)
        self.trace.forced.append(choice.is_forced)
        if choice.bin is not None:
            self.trace.bins.append(choice.bin)
            self.trace.bin_ends.append(len(self._token_ids))
        if choice.logprob is not None:
            self._logprobs.append(self._token_logprob(choice, choice.logprob))
        text = self._settings.detokenizer.feed(choice.token_id)
        self.trace.texts.append(text)
        visible = self._stop.feed(text)
        if self._stop.found or choice.token_id in self._settings.eos_ids:
            self._ended = "stop"
        elif len(self._token_ids) == self._settings.params.max_new_tokens:
            self._ended = "length"
        return visible

    def _finish_text(self) -> str:
        """The text that was held back, for a character or a stop string that never came to its end."""
        rest = self._settings.detokenizer.finish()
        self.trace.texts[-1] += rest
        visible = self._stop.feed(rest) + self._stop.finish()
        if self._stop.found:
            self._ended = "stop"
        return visible

    def _parse(self, text: str) -> ParsedText:
        parser = self._settings.tool_parser
        if parser is None:
            return ParsedText(text)
        parsed = parser.feed(text)
        if not self.is_finished:
            return parsed
        rest = parser.finish()
        return ParsedText(
            parsed.text + rest.text,
            parsed.tool_calls + rest.tool_calls,
            parsed.invalid_tool_calls + rest.invalid_tool_calls,
        )

    def _token_logprob(self, choice: Choice, logprob: float) -> TokenLogprob:
        decode = self._settings.decode_token
        top = tuple((token_id, decode(token_id), value) for token_id, value in choice.top_logprobs)
        return TokenLogprob(choice.token_id, decode(choice.token_id), logprob, top)
