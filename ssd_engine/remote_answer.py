"""One answer in the making, from the chunks of a server's stream."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any, Literal

from ssd_engine.config import GenerationParams, SSDConfig
from ssd_engine.errors import JailbreakRiskError
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
from ssd_engine.risk import risk_action, risk_error
from ssd_engine.trace import SafetyTrace
from ssd_engine.trace_codes import TraceReader


@dataclass
class _Call:
    """A tool call, as its parts come."""

    id: str = ""
    name: str = ""
    arguments: str = ""


class RemoteAnswer:
    """Collects an answer chunk by chunk. In its trace, `texts` has what a chunk added at the chunk's last token."""

    def __init__(self, params: GenerationParams) -> None:
        self._params = params
        self._reader: TraceReader | None = None
        self._trace = SafetyTrace(decoding=params.decoding)
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._calls: dict[int, _Call] = {}
        self._logprobs: list[TokenLogprob] = []
        self._finish: str = "stop"
        self._usage = Usage(0, 0)
        self._start = time.perf_counter()
        self._timings = Timings()
        self._is_refused = False
        self._error: JailbreakRiskError | None = None
        """What the caller asked to be raised."""

    @property
    def is_over(self) -> bool:
        """Whether risk ended the answer, whatever more the server sends."""
        return self._is_refused or self._error is not None

    def add(self, chunk: Any) -> Piece:
        """Take in a `ChatCompletionChunk`."""
        before, bins_before = len(self._trace.matched), len(self._trace.bins)
        ssd = (chunk.model_extra or {}).get("ssd") or {}
        if self._reader is None and "config" in ssd:
            self._reader = TraceReader(SSDConfig(**ssd["config"]))
            self._trace = self._reader.trace
        if chunk.usage is not None:
            details = chunk.usage.prompt_tokens_details
            cached = (details.cached_tokens or 0) if details is not None else 0
            self._usage = Usage(chunk.usage.prompt_tokens, chunk.usage.completion_tokens, cached)
        text, token_ids, logprobs = self._take(chunk.choices[0]) if chunk.choices else ("", [], [])
        self._read_codes(ssd.get("token_codes", "") if chunk.choices else "", text)
        if token_ids and not self._timings.first_token:
            self._timings.first_token = time.perf_counter() - self._start
        new = slice(before, None)
        return Piece(
            text=text,
            token_ids=tuple(token_ids),
            texts=tuple(self._trace.texts[new]),
            schemes=tuple(self._trace.schemes[new]),
            matched=tuple(self._trace.matched[new]),
            forced=tuple(self._trace.forced[new]),
            bins=tuple(self._trace.bins[bins_before:]),
            logprobs=tuple(logprobs),
        )

    def finish(self) -> Piece:
        """The last piece, with tool calls and the result; a refusal is added where risk called for one.

        Raises:
            JailbreakRiskError: risk called for that; its `text` is what came before.
        """
        if self._error is not None:
            self._error.text = "".join(self._texts)
            raise self._error
        text = ""
        if self._is_refused:
            text = ("\n\n" if any(self._texts) else "") + self._params.refusal_text
            self._calls = {}
        calls, invalid = self._parsed_calls()
        self._timings.total = time.perf_counter() - self._start
        usage = self._usage
        if not usage.completion_tokens:  # the stream was left before its end
            usage = Usage(usage.prompt_tokens, len(self._token_ids), usage.cached_prompt_tokens)
        result = GenerationResult(
            text=self._params.refusal_text if self._is_refused else "".join(self._texts),
            token_ids=self._token_ids,
            finish_reason=self._reason(calls),
            usage=usage,
            trace=self._trace,
            tool_calls=calls,
            invalid_tool_calls=invalid,
            logprobs=self._logprobs if self._params.logprobs else None,
            timings=self._timings,
        )
        return Piece(text=text, tool_calls=calls, invalid_tool_calls=invalid, result=result)

    def _take(self, choice: Any) -> tuple[str, list[int], list[TokenLogprob]]:
        """Text, token ids and log-probabilities that a chunk adds."""
        text = choice.delta.content or ""
        self._texts.append(text)
        for part in choice.delta.tool_calls or []:
            call = self._calls.setdefault(part.index, _Call())
            call.id = part.id or call.id
            if part.function is not None:
                call.name += part.function.name or ""
                call.arguments += part.function.arguments or ""
        self._finish = choice.finish_reason or self._finish
        token_ids: list[int] = (choice.model_extra or {}).get("token_ids") or []
        self._token_ids += token_ids
        content = (choice.logprobs.content or []) if choice.logprobs is not None else []
        logprobs = [
            TokenLogprob(token_id, each.token, each.logprob, tuple((-1, t.token, t.logprob) for t in each.top_logprobs))
            for token_id, each in zip(token_ids, content, strict=False)
        ]
        self._logprobs += logprobs
        return text, token_ids, logprobs

    def _read_codes(self, codes: str, text: str) -> None:
        for code in codes:
            if self._reader is None or self.is_over:
                return
            choice = self._reader.read_code(-1, int(code, 16))
            self._trace.texts.append("")
            if choice.bin is not None:
                self._act_on_risk()
        if text and self._trace.texts:
            self._trace.texts[-1] += text

    def _act_on_risk(self) -> None:
        action = risk_action(self._params, self._trace)
        self._is_refused = action == "refuse"
        if action == "raise":
            self._error = risk_error(self._trace)

    def _parsed_calls(self) -> tuple[tuple[ToolCall, ...], tuple[InvalidToolCall, ...]]:
        calls: list[ToolCall] = []
        invalid: list[InvalidToolCall] = []
        for _, call in sorted(self._calls.items()):
            try:
                arguments = json.loads(call.arguments or "{}")
                if not isinstance(arguments, dict):
                    raise ValueError(f"arguments are {type(arguments).__name__}, not an object")
            except ValueError as error:
                invalid.append(InvalidToolCall(call.id, call.name or None, call.arguments, str(error)))
            else:
                calls.append(ToolCall(call.id, call.name, arguments))
        return tuple(calls), tuple(invalid)

    def _reason(self, calls: tuple[ToolCall, ...]) -> FinishReason:
        if self._is_refused:
            return "refused"
        if calls:
            return "tool_calls"
        known: dict[str, Literal["stop", "length"]] = {"stop": "stop", "length": "length"}
        return known.get(self._finish, "stop")
