"""Tap: what a request's outputs say of its tokens, read as they pass, and told in the events of its stream."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from vllm.exceptions import GenerationError

from ssd_engine.backends.vllm.metrics import record as record_figures
from ssd_engine.errors import SSDError
from ssd_engine.rule.choice import Choice
from ssd_engine.rule.scheme import Scheme
from ssd_engine.trace.codes import TraceReader, digit_of, with_logprobs
from ssd_engine.trace.token_records import beginning_record, record

if TYPE_CHECKING:
    from ssd_engine.backends.vllm.chat_request import ChatRequest
    from ssd_engine.serving.intake import Intake

DONE = "data: [DONE]\n\n"


class _Reading:
    """One answer of a request: what has been read, and what of it has been told."""

    def __init__(self, request: ChatRequest, intake: Intake) -> None:
        self._intake = intake
        self._top = (request.top_logprobs or 0) if request.logprobs else None
        self.reader = None if request._config is None else TraceReader(request._config)
        self._detokenizer = intake.detokenizer(request._tools if request.offers_tools else ())
        self._records = request.ssd_tokens
        self.codes = ""
        self._told = 0
        self._news: list[dict[str, Any]] = []
        self._rest = ""

    @property
    def has_begun(self) -> bool:
        """Whether something has been told."""
        return bool(self._told)

    def read(self, output: Any) -> None:
        """Take in a `CompletionOutput`.

        Raises:
            SSDError: its tokens mean nothing.
        """
        token_ids = list(output.token_ids)
        if self.reader is None:
            choices = self._lossless(token_ids, output.logprobs)
        elif token_ids and output.logprobs is None:
            raise SSDError("vLLM gave tokens without log-probabilities, in which it is told how they were chosen")
        else:
            read = self.reader.read
            choices = [read(i, at, self._top) for i, at in zip(token_ids, output.logprobs or (), strict=True)]
            self.codes += "".join(
                digit_of(at[i].rank - 1) for i, at in zip(token_ids, output.logprobs or (), strict=True)
            )
        if self._records:
            decode, feed = self._intake.decode, self._detokenizer.feed
            self._news += [record(choice, feed(choice.token_id), decode) for choice in choices]
            if output.finish_reason is not None:
                self._rest = self._detokenizer.finish()

    def news(self) -> dict[str, Any]:
        """What has been read since the last time: a hexadecimal digit a token, and where it is wanted its record."""
        news: dict[str, Any] = {}
        if len(self.codes) > self._told:
            news["token_codes"] = self.codes[self._told :]
        if self._news:
            news["tokens"] = self._news
        if self._news and self.reader is not None and self.reader.beginning:
            news["beginning"] = beginning_record(self.reader.beginning)
            self.reader.beginning = []
        if self._rest:
            news["rest"] = self._rest
        self._told += len(news.get("token_codes") or self._news)
        self._news, self._rest = [], ""
        return news

    def _lossless(self, token_ids: Sequence[int], logprobs: Any) -> list[Choice]:
        """Its rule says only how many were accepted: all but the last one."""
        last = len(token_ids) - 1
        choices = [Choice(i, matched=place < last, scheme=Scheme.NONE, bin=None) for place, i in enumerate(token_ids)]
        if logprobs is None:
            return choices
        return [with_logprobs(choice, at, self._top) for choice, at in zip(choices, logprobs, strict=True)]


class Tap:
    """Reads, as a request's outputs pass, how its tokens were chosen."""

    def __init__(self, request: ChatRequest, intake: Intake) -> None:
        self._request = request
        self._intake = intake
        self._readings: dict[int, _Reading] = {}
        self._prompt_tokens: dict[str, int] = {}
        self.is_finished = False

    async def passed_on(self, outputs: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        """The outputs; log-probabilities that the client has asked for come likeliest first.

        Raises:
            GenerationError: tokens mean nothing, since a model's numbers have failed; the request is aborted.
        """
        async with aclosing(outputs):
            async for output in outputs:
                try:
                    self._read(output)
                except SSDError as error:
                    raise GenerationError(str(error)) from error
                yield output

    def told(self, event: str) -> str:
        """A server-sent event with what is new of its answer."""
        if not event.startswith("data: {"):
            return event
        data = json.loads(event.removeprefix("data: "))
        if not data.get("choices") or "role" in data["choices"][0]["delta"]:  # the first event comes before any token
            return event
        reading = self._readings.get(data["choices"][0]["index"])
        if reading is None:
            return event
        begins = not reading.has_begun
        news = reading.news()
        if begins and news:
            news = {**self._settings(), **news}
        return event if not news else _with(data, news)

    def summed_up(self, event: str) -> str:
        """A stream's last event, with the summary."""
        data = json.loads(event.removeprefix("data: "))
        summary = self.summary()
        return _with(data, {**data.get("ssd", {}), **summary} if isinstance(summary, dict) else summary)

    def summary(self) -> dict[str, Any] | list[dict[str, Any]]:
        """The trace's summary; of several answers (`n`), a list of them."""
        if self._request._config is None:
            return {"decoding": "speculative"}
        summaries = [
            {**reading.reader.trace.summary(), "bin_size": reading.reader.trace.bin_size, "token_codes": reading.codes}
            for _, reading in sorted(self._readings.items())
            if reading.reader is not None
        ]
        return summaries[0] if len(summaries) == 1 else summaries

    def _read(self, output: Any) -> None:
        self._prompt_tokens = {
            "prompt_tokens": len(output.prompt_token_ids or ()),
            "cached_prompt_tokens": output.num_cached_tokens or 0,
        }
        for each in output.outputs:
            reading = self._readings.setdefault(each.index, _Reading(self._request, self._intake))
            reading.read(each)
            if self._request.logprobs and each.logprobs is not None:
                each.logprobs[:] = [dict(sorted(at.items(), key=lambda item: -item[1].logprob)) for at in each.logprobs]
        self.is_finished = output.finished
        if self.is_finished:
            for reading in self._readings.values():
                if reading.reader is not None:
                    record_figures(reading.reader.trace)

    def _settings(self) -> dict[str, Any]:
        """What a stream tells once, before its first token."""
        config = self._request._config
        settings: dict[str, Any] = (
            {} if config is None else {"config": config.model_dump(exclude={"draft_system_prompt"})}
        )
        if self._request.ssd_tokens:
            settings |= {
                **self._prompt_tokens,
                "eos_ids": sorted(self._intake.eos_ids),
                "format": self._intake.format.record(),
                "reasoning_stage": self._request._reasoning_stage,
            }
        return settings


def _with(data: dict[str, Any], ssd: Any) -> str:
    data["ssd"] = ssd
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
