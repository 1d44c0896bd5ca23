"""Scheduler: one worker thread that owns the models; requests wait in line and are decoded round by round."""

from __future__ import annotations

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
    from ssd_engine.verify import Choice


Event = Piece | BaseException
_MAX_ROWS = 1


class DecodedSequence(Protocol):
    """A sequence that a backend is decoding."""

    timings: Timings

    @property
    def cached_prompt_tokens(self) -> int: ...


S = TypeVar("S", bound=DecodedSequence)


class Decoder(Protocol[S]):
    """What a backend gives the scheduler."""

    def open(
        self, target_ids: Sequence[int], draft_ids: Sequence[int], params: GenerationParams, config: SSDConfig
    ) -> S: ...

    def round(self, sequences: Sequence[S]) -> list[list[Choice]]: ...


@dataclass(eq=False)
class Request:
    """A prompt in each model's tokens, how to answer it, and where the pieces go.

    `deliver` is called in the worker thread: with pieces, the last of which has the result, or with one exception.
    """

    target_ids: Sequence[int]
    draft_ids: Sequence[int]
    params: GenerationParams
    config: SSDConfig
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
    def is_expired(self) -> bool:
        return self.params.timeout is not None and self.elapsed > self.params.timeout


@dataclass
class _Running(Generic[S]):
    request: Request
    sequence: S


class Scheduler(Generic[S]):
    """Runs requests first come, first served."""

    def __init__(self, decoder: Decoder[S]) -> None:
        self._decoder = decoder
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
    def is_idle(self) -> bool:
        """Whether no request waits or runs."""
        with self._changed:
            return not (self._waiting or self._running)

    def close(self) -> None:
        """End every request with `EngineClosedError`, after the round under way, and the worker with them."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        del self._decoder  # and with it the models

    def _work(self) -> None:
        while self._wait_for_work():
            self._drop_ended()
            self._admit()
            if self._running:
                self._advance()
        for request in [*(running.request for running in self._running), *self._waiting]:
            request.deliver(EngineClosedError("the engine was closed before this request was finished"))
        self._running.clear()
        self._waiting.clear()

    def _wait_for_work(self) -> bool:
        """Block until there is something to do; False once closed."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._closed or self._waiting or self._running))
            return not self._closed

    def _drop_ended(self) -> None:
        """Let go of requests that were cancelled or ran out of time, in line or running."""
        with self._changed:
            requests = [*self._waiting, *(running.request for running in self._running)]
            ended = {request for request in requests if request.is_cancelled or request.is_expired}
            self._waiting = deque(request for request in self._waiting if request not in ended)
        self._running = [running for running in self._running if running.request not in ended]
        for request in ended:
            if not request.is_cancelled:
                request.deliver(
                    RequestTimeoutError(
                        f"the request took longer than its timeout of {request.params.timeout} s; "
                        "allow more time or fewer max_new_tokens"
                    )
                )

    def _admit(self) -> None:
        while len(self._running) < _MAX_ROWS:
            with self._changed:
                if not self._waiting:
                    return
                request = self._waiting.popleft()
            try:
                sequence = self._decoder.open(request.target_ids, request.draft_ids, request.params, request.config)
            except Exception as error:
                request.deliver(error)
            else:
                self._running.append(_Running(request, sequence))

    def _advance(self) -> None:
        """One round for all that run."""
        try:
            rounds = self._decoder.round([running.sequence for running in self._running])
            for running, choices in zip(self._running, rounds, strict=True):
                if choices:
                    self._deliver(running, choices)
        except Exception as error:  # whatever a model raises ends the requests of its round, not the worker
            for running in self._running:
                running.request.deliver(error)
            self._running = []
        self._running = [running for running in self._running if not running.request.answer.is_finished]

    def _deliver(self, running: _Running[S], choices: list[Choice]) -> None:
        request, sequence = running.request, running.sequence
        piece = request.answer.add_round(choices)
        timings = sequence.timings
        timings.total = request.elapsed
        timings.first_token = timings.first_token or timings.total
        if request.answer.is_finished:
            result = request.answer.result(len(request.target_ids), sequence.cached_prompt_tokens, timings)
            piece = replace(piece, result=result)
        request.deliver(piece)
