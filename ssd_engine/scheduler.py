"""Scheduler: one worker thread that owns the models; requests wait in line and are decoded together, round by round."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from ssd_engine.answer import Answer
from ssd_engine.config import GenerationParams, SSDConfig
from ssd_engine.errors import EngineClosedError, RequestTimeoutError
from ssd_engine.result import Piece, Timings

if TYPE_CHECKING:
    from ssd_engine.grammar import Guide
    from ssd_engine.verify import Choice


Event = Piece | BaseException


class DecodedSequence(Protocol):
    """A sequence that a backend is decoding."""

    timings: Timings

    @property
    def cached_prompt_tokens(self) -> int: ...

    @property
    def is_reading_prompt(self) -> bool: ...


S = TypeVar("S", bound=DecodedSequence)


class Decoder(Protocol[S]):
    """What a backend gives the scheduler."""

    def open(
        self,
        target_ids: Sequence[int],
        draft_ids: Sequence[int],
        params: GenerationParams,
        config: SSDConfig,
        guide: Guide | None,
    ) -> S | None:
        """Begin an answer; None while there is no room for it."""

    def close(self, sequence: S) -> None:
        """Free what a sequence holds."""

    def shut_down(self) -> None:
        """Let go of the models; nothing is asked of the decoder afterwards."""

    def read_prompt(self, sequence: S) -> None:
        """Read a part of a prompt, short enough for others to wait for."""

    def round(self, sequences: Sequence[S]) -> list[list[Choice] | Exception]:
        """Advance sequences whose prompts have been read: new tokens for each, or what went wrong with it alone."""


@dataclass(eq=False)
class Request:
    """A prompt in each model's tokens, how to answer it, and where the pieces go.

    `deliver` is called in the worker thread: with pieces, the last of which has the result, or with one exception.
    """

    target_ids: Sequence[int]
    draft_ids: Sequence[int]
    params: GenerationParams
    config: SSDConfig
    guide: Guide | None
    answer: Answer
    deliver: Callable[[Event], None]
    submitted: float = field(default_factory=time.perf_counter)
    is_cancelled: bool = False

    def cancel(self) -> None:
        """Stop within one round; nothing more is delivered."""
        self.is_cancelled = True

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.submitted

    @property
    def timeout_error(self) -> RequestTimeoutError | None:
        """What the caller is told where the request has run out of time and was not cancelled."""
        timeout = self.params.timeout
        if self.is_cancelled or timeout is None or self.elapsed <= timeout:
            return None
        return RequestTimeoutError(
            f"the request took longer than its timeout of {timeout} s; allow more time or fewer max_new_tokens"
        )

    @property
    def has_ended(self) -> bool:
        return self.is_cancelled or self.timeout_error is not None


@dataclass(eq=False)
class _Running(Generic[S]):
    request: Request
    sequence: S


class Scheduler(Generic[S]):
    """Runs requests first come, first served, up to `max_batch_size` at once.

    Requests join and leave between rounds. A request that finds no room waits, and so do those behind it.
    """

    def __init__(self, decoder: Decoder[S], max_batch_size: int) -> None:
        self._decoder = decoder
        self._max_batch_size = max_batch_size
        self._waiting: deque[Request] = deque()
        self._running: list[_Running[S]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def submit(self, request: Request) -> None:
        """Put a request in line; raises `EngineClosedError` once the engine is closed."""
        with self._changed:
            if self._closed:
                raise EngineClosedError("the engine is closed; make a new one")
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="ssd-engine", daemon=True)
                self._thread.start()
            self._waiting.append(request)
            self._changed.notify()

    @property
    def num_running(self) -> int:
        """Requests that hold a place."""
        with self._changed:
            return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests in line."""
        with self._changed:
            return len(self._waiting)

    def close(self) -> None:
        """End every request with `EngineClosedError`, after the round under way, and the worker with them."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._decoder.shut_down()
        del self._decoder  # and with it the models

    def _work(self) -> None:
        while self._wait_for_work():
            self._drop_ended()
            self._admit()
            self._read_prompts()
            self._advance()
        closed = EngineClosedError("the engine was closed before this request was finished")
        for running in list(self._running):
            self._end(running, closed)
        while self._waiting:
            self._waiting.popleft().deliver(closed)

    def _wait_for_work(self) -> bool:
        """Block until there is something to do; False once closed."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._closed or self._waiting or self._running))
            return not self._closed

    def _drop_ended(self) -> None:
        """Let go of requests that were cancelled or ran out of time, in line or running."""
        for running in list(self._running):
            if running.request.has_ended:
                self._end(running, running.request.timeout_error)
        with self._changed:
            ended = [request for request in self._waiting if request.has_ended]
            self._waiting = deque(request for request in self._waiting if request not in ended)
        for request in ended:
            if request.timeout_error is not None:
                request.deliver(request.timeout_error)

    def _admit(self) -> None:
        while len(self._running) < self._max_batch_size:
            with self._changed:
                if not self._waiting:
                    return
                request = self._waiting[0]
                try:
                    sequence = self._decoder.open(
                        request.target_ids, request.draft_ids, request.params, request.config, request.guide
                    )
                except Exception as error:
                    self._waiting.popleft()
                    request.deliver(error)
                    continue
                if sequence is None:
                    return  # the first in line waits for room, and nobody overtakes it
                self._waiting.popleft()
                self._running.append(_Running(request, sequence))

    def _read_prompts(self) -> None:
        """Read parts of prompts, oldest first: as many as there are unread prompts to each answer that streams.

        So a stream waits for one part where streams are many, and where most requests still wait to be read, those few
        that stream wait for them instead.
        """
        num_streaming = sum(not running.sequence.is_reading_prompt for running in self._running)
        for _ in range(math.ceil((len(self._running) - num_streaming) / max(num_streaming, 1))):
            unread = (each for each in self._running if each.sequence.is_reading_prompt and not each.request.has_ended)
            running = next(unread, None)
            if running is None or self._closed:
                return
            try:
                self._decoder.read_prompt(running.sequence)
            except Exception as error:
                self._end(running, error)

    def _advance(self) -> None:
        """One round for all whose prompts have been read."""
        ready = [running for running in self._running if not running.sequence.is_reading_prompt]
        if not ready:
            return
        outcomes = self._decoder.round([running.sequence for running in ready])
        for running, outcome in zip(ready, outcomes, strict=True):
            if not outcome:  # it had no part in this round
                continue
            event: Event = outcome if isinstance(outcome, Exception) else self._piece(running, outcome)
            if isinstance(event, Piece) and (error := running.request.answer.error) is not None:
                running.request.deliver(event)
                event = error
            if isinstance(event, Piece) and event.result is None:
                running.request.deliver(event)
            else:
                self._end(running, event)

    def _piece(self, running: _Running[S], choices: list[Choice]) -> Piece | Exception:
        """What a round added to an answer; whatever goes wrong here ends this one request, not the worker."""
        request, timings = running.request, running.sequence.timings
        try:
            piece = request.answer.add_round(choices)
            timings.total = request.elapsed
            timings.first_token = timings.first_token or timings.total
            if not request.answer.is_finished:
                return piece
            cached = running.sequence.cached_prompt_tokens
            return replace(piece, result=request.answer.result(len(request.target_ids), cached, timings))
        except Exception as error:
            return error

    def _end(self, running: _Running[S], event: Event | None) -> None:
        """Free a request's place, then tell its caller."""
        with self._changed:
            self._running.remove(running)
        self._decoder.close(running.sequence)
        if event is not None:
            running.request.deliver(event)
