"""One answer in the making, from the chunks of a server's stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from ssd_engine.answers.answer import Answer, AnswerSettings
from ssd_engine.answers.result import Timings
from ssd_engine.answers.tool_calls import ToolCallParser
from ssd_engine.answers.tool_formats import ToolFormat
from ssd_engine.config import SSDConfig
from ssd_engine.errors import SSDError
from ssd_engine.prompts.prompt import argument_schemas
from ssd_engine.remote.errors import broke_off
from ssd_engine.remote.request import RemoteRequest
from ssd_engine.rule.choice import Choice
from ssd_engine.rule.signals import Look
from ssd_engine.serving.answer_thread import AnswerThread
from ssd_engine.serving.request import Round, is_last
from ssd_engine.trace.codes import TraceReader
from ssd_engine.trace.token_records import TokenReader, beginning_of_record

_ENDS: Mapping[str, Literal["stop", "length"]] = {"stop": "stop", "tool_calls": "stop", "length": "length"}
"""What a server's finish reasons say of an answer; any other says that it has none."""


class RemoteAnswer:
    """Takes in the chunks of one stream, and delivers what the embedded engine would deliver for the same tokens."""

    def __init__(self, request: RemoteRequest, url: str) -> None:
        self._request = request
        self._url = url
        self._tokens: TokenReader | None = None
        self._cached_prompt_tokens = 0
        self._timings = Timings()
        self._beginning: list[Look] = []
        """What signals said over a given beginning, until the first round is handed over."""
        self._thread = AnswerThread(request) if callable(request.params.on_risk) else None
        self._is_over = False
        self.is_finished = False
        """Whether the server has told the end of the answer."""

    @property
    def is_over(self) -> bool:
        """Whether no further token is needed."""
        return self._is_over or (self._thread is not None and self._thread.is_over)

    def take(self, chunk: Any) -> None:
        """Take in a `ChatCompletionChunk`.

        Raises:
            SSDError: the chunk is none of `ssd serve`, or says that the answer came to no good end.
        """
        if not chunk.choices:
            return
        choice, ssd = chunk.choices[0], (chunk.model_extra or {}).get("ssd") or {}
        if "eos_ids" in ssd:
            self._begin(ssd)
        if self._tokens is None and (choice.delta.content or choice.delta.tool_calls):
            raise SSDError(
                f"the server at {self._url} does not tell how its tokens were chosen, so they may not be SSD's; give "
                "the address of `ssd serve`, of the same version as this client"
            )
        reason = choice.finish_reason
        end = None if reason is None else _ENDS.get(reason)
        self.is_finished = end is not None
        rounds: list[list[Choice]] = []
        if self._tokens is not None:
            self._tokens.rest = ssd.get("rest", "")
            self._beginning = beginning_of_record(ssd.get("beginning", ()))
            rounds = self._tokens.rounds(ssd.get("tokens", ()), ssd.get("token_codes", ""))
            if rounds and end is not None:
                rounds[-1][-1] = replace(rounds[-1][-1], ends=end)
            for choices in rounds:
                self._hand_over(choices)
        if reason is not None and (end is None or not (rounds or self.is_over)):
            raise broke_off(self._url, f"finish_reason={reason!r}")

    def stop(self) -> None:
        """Make nothing more of what was taken in."""
        if self._thread is not None:
            self._thread.stop()

    def _begin(self, ssd: Mapping[str, Any]) -> None:
        request = self._request
        config = SSDConfig(**ssd.get("config", {}))
        is_ssd = request.params.decoding == "ssd"
        self._tokens = TokenReader(TraceReader(config) if is_ssd else None)
        self._cached_prompt_tokens = int(ssd["cached_prompt_tokens"])
        request.target_ids = range(ssd["prompt_tokens"])
        tools = argument_schemas(request.tools)
        request.answer = Answer(
            AnswerSettings(
                params=request.params,
                config=config,
                eos_ids=frozenset(ssd["eos_ids"]),
                detokenizer=self._tokens,
                tool_parser=ToolCallParser(ToolFormat(ssd["tool_format"]), tools) if tools else None,
                decode_token=self._tokens.decode,
            )
        )

    def _hand_over(self, choices: list[Choice]) -> None:
        added = Round(choices, self._cached_prompt_tokens, self._timings, self._beginning)
        self._beginning = []
        if self.is_over:
            return
        if self._thread is not None:
            self._thread.add(added)
            return
        events = self._request.events(added)
        self._is_over = is_last(events[-1])
        for event in events:
            self._request.deliver(event)
