"""Scheduler: one worker thread that owns the models; requests wait in line and are decoded together, round by round."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic

from ssd_engine.errors import EngineBusyError, EngineClosedError, SSDError
from ssd_engine.serving.answer_thread import AnswerThread
from ssd_engine.serving.decoder import Decoder, DecoderError, S
from ssd_engine.serving.forks import after_fork, leave_behind
from ssd_engine.serving.reading import PromptReading
from ssd_engine.serving.request import Event, Request, Round, is_last

if TYPE_CHECKING:
    from ssd_engine.rule.choice import Choice

_logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Running(Generic[S]):
    """A request that holds a place."""

    request: Request
    sequence: S
    thread: AnswerThread | None
    """Where its pieces are made, if not in the worker."""

    @property
    def is_over(self) -> bool:
        return self.request.is_abandoned or (self.thread is not None and self.thread.is_over)

    @property
    def is_reading_prompt(self) -> bool:
        return self.sequence.num_unread_parts > 0


class Scheduler(Generic[S]):
    """Runs requests first come, first served, up to `max_batch_size` at once.

    Requests join and leave between rounds. A request that finds no room waits, and so do those behind it. Whatever
    ends the worker, every request is told so; and a waiting caller can ask `lost_error`, which needs no worker.
    """

    def __init__(
        self,
        decoder: Decoder[S],
        max_batch_size: int,
        max_waiting: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._decoder = decoder
        self._max_batch_size = max_batch_size
        self._max_waiting = max_waiting
        # In order of arrival; a request that is given up leaves from anywhere in constant time.
        self._waiting: OrderedDict[Request, None] = OrderedDict()
        self._running: list[_Running[S]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._failure: BaseException | None = None
        """What ended the worker."""
        self._is_forked = False
        self._thread: threading.Thread | None = None
        self._reading = PromptReading(decoder.parts_at_once)
        self._clock = clock
        after_fork(self)

    def submit(self, request: Request) -> None:
        """Put a request in line.

        Raises:
            EngineClosedError: the engine is closed.
            EngineBusyError: `max_waiting` requests wait.
        """
        with self._changed:
            if (error := self.closed_error) is not None:
                raise error
            if not self._has_place:
                raise EngineBusyError(
                    f"{len(self._waiting)} requests wait, the most that this engine takes; come again later, or raise "
                    "max_waiting"
                )
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="ssd-engine", daemon=True)
                thread.start()
                self._thread = thread
            request.submitted = time.perf_counter()
            self._waiting[request] = None
            self._changed.notify_all()

    def cancel(self, request: Request) -> None:
        """Give a request up, within one round where it runs; nothing more is delivered."""
        request.is_cancelled = True
        self._leave_line(request)

    def wait_for_place(self, timeout: float) -> bool:
        """Wait, at most `timeout` seconds, until a request can be put in line, or none ever will."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._has_place, timeout)
        return True

    @property
    def batch_limit(self) -> int:
        """Most requests of one batch that are under way together."""
        return self._max_batch_size + self._max_waiting

    @property
    def _has_place(self) -> bool:
        return len(self._waiting) < self._max_waiting

    @property
    def closed_error(self) -> EngineClosedError | None:
        """What is said to new requests: None while they are taken."""
        return self._closed_error("the engine is closed; make a new one") if self._closed else None

    @property
    def lost_error(self) -> EngineClosedError | None:
        """The error for a caller that still waits although the worker is gone; None while it lives."""
        thread = self._thread
        if self._is_forked or (thread is not None and not thread.is_alive()):
            return self._closed_error("the engine's worker is gone; make a new engine")
        return None

    @property
    def is_closed(self) -> bool:
        """Whether no request is taken any more: closed, failed, or made before this process was forked."""
        return self._closed

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
            has_worker = self._thread is not None
            is_first = not self._closed
            self._closed = True
            self._changed.notify_all()
        if self._is_forked:
            return  # the models are the parent's
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        if is_first and not has_worker:
            self._shut_down()

    def _closed_error(self, message: str) -> EngineClosedError:
        """The error that says why the engine answers no more."""
        if self._is_forked:
            return EngineClosedError(
                f"the engine was made before this process, {os.getpid()}, was forked, and its worker stayed behind; "
                "make an engine in each process, or start processes with 'spawn'"
            )
        error = EngineClosedError(message)
        if self._failure is not None:
            reason = f"{type(self._failure).__name__}: {self._failure}"
            error = EngineClosedError(f"the engine's worker has failed with {reason}; make a new engine")
            error.__cause__ = self._failure
        return error

    def _work(self) -> None:
        try:
            while self._wait_for_work():
                self._drop_ended()
                self._admit()
                self._read_prompts()
                self._advance()
        except BaseException as error:
            _logger.exception("the engine's worker has failed")
            self._failure = error
        finally:
            self._end_all()
            self._shut_down()

    def _wait_for_work(self) -> bool:
        """Block until there is something to do; False once closed."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._closed or self._waiting or self._running))
            return not self._closed

    def _drop_ended(self) -> None:
        """Free the places of requests that were cancelled, ran out of time, or need no more tokens."""
        for running in list(self._running):
            if running.is_over:
                error = running.request.timeout_error
                self._end(running, *([] if error is None else [error]))

    def _admit(self) -> None:
        while len(self._running) < self._max_batch_size and not self._closed:
            with self._changed:
                request = next(iter(self._waiting), None)
            if request is None:
                return
            if request.is_abandoned:  # its caller has been told, or is about to find out
                self._leave_line(request)
                continue
            try:
                sequence = self._decoder.open(
                    request.target_ids,
                    request.draft_ids,
                    request.params,
                    request.config,
                    request.guide,
                    request.num_given,
                )
                if sequence is None and not self._running:
                    raise SSDError("there is no room for this request although nothing runs; make a new engine")
            except DecoderError:
                raise
            except Exception as error:
                self._leave_line(request)
                request.deliver(error)
                continue
            if sequence is None:
                return  # the first in line waits for room, and nobody overtakes it
            self._leave_line(request, _Running(request, sequence, _thread_for(request)))

    def _leave_line(self, request: Request, running: _Running[S] | None = None) -> None:
        """Take a request out of the line, for good or to run."""
        with self._changed:
            self._waiting.pop(request, None)
            if running is not None:
                self._running.append(running)
            self._changed.notify_all()

    def _read_prompts(self) -> None:
        """Read parts of prompts."""
        num_unread = sum(running.is_reading_prompt for running in self._running)
        num_left = self._reading.num_parts(num_unread, len(self._running) - num_unread)
        while num_left > 0 and not self._closed:
            unread = [running for running in self._running if running.is_reading_prompt and not running.is_over]
            if not unread:
                return
            chosen = self._reading.choose(unread, lambda running: running.sequence.num_unread_parts, num_left)
            num_left -= len(chosen)
            begin = self._clock()
            failures = self._read_together([running.sequence for running in chosen])
            self._reading.has_read(self._clock() - begin)
            for running in unread:
                if (failure := failures.get(running.sequence)) is not None:
                    self._end(running, failure)

    def _read_together(self, sequences: Sequence[S]) -> Mapping[S, Exception]:
        """Read a part of each; returns what went wrong with some of them."""
        try:
            return self._decoder.read_prompts(sequences)
        except DecoderError:
            raise
        except Exception as error:
            return dict.fromkeys(sequences, error)

    def _advance(self) -> None:
        """One round for all whose prompts have been read."""
        ready = [running for running in self._running if not running.is_reading_prompt]
        if not ready:
            return
        begin = self._clock()
        try:
            outcomes = self._decoder.round([running.sequence for running in ready])
        except DecoderError:
            raise
        except Exception as error:
            outcomes = [error for _ in ready]
        self._reading.has_decoded(self._clock() - begin)
        for running, outcome in zip(ready, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._end(running, outcome)
            elif outcome:  # else it had no part in this round
                self._take(running, outcome)

    def _take(self, running: _Running[S], choices: list[Choice]) -> None:
        """Hand a round's tokens to the request's answer."""
        sequence, request = running.sequence, running.request
        added = Round(
            choices, sequence.cached_prompt_tokens, sequence.timings, sequence.take_beginning(), sequence.num_drafted
        )
        if running.thread is None:
            events = request.events(added)
        else:
            events = []
            try:
                running.thread.add(added)
            except RuntimeError as error:  # the system starts no more threads
                events = [error]
        if (events and is_last(events[-1])) or (running.thread is not None and running.thread.is_over):
            self._end(running, *events)
            return
        for event in events:
            request.deliver(event)

    def _end(self, running: _Running[S], *events: Event) -> None:
        """Free a request's place, then tell its caller."""
        with self._changed:
            self._running.remove(running)
        try:
            self._decoder.close(running.sequence)
        finally:
            self._tell(running, *events)

    def _tell(self, running: _Running[S], *events: Event) -> None:
        if running.thread is not None and (events or running.request.is_abandoned):
            running.thread.stop()
        for event in events:
            running.request.deliver(event)

    def _end_all(self) -> None:
        """Tell every request that there will be no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            ended, self._running = self._running, []
            waiting, self._waiting = list(self._waiting), OrderedDict()
        for running in ended:
            try:
                self._decoder.close(running.sequence)
            except BaseException:
                _logger.exception("a sequence could not be closed")
            self._tell(running, self._closed_error("the engine was closed before this request was finished"))
        for request in waiting:
            request.deliver(self._closed_error("the engine was closed before this request was finished"))

    def _shut_down(self) -> None:
        """Let go of the models."""
        try:
            self._decoder.shut_down()
        finally:
            del self._decoder

    def forget_worker(self) -> None:
        """In a forked child, where no thread but the one that forked goes on, and locks may be held for ever."""
        self._changed = threading.Condition()
        if not self._closed:
            leave_behind(self._decoder)
        self._closed = self._is_forked = True
        self._running, self._waiting = [], OrderedDict()


def _thread_for(request: Request) -> AnswerThread | None:
    """Where a request's pieces are made that asks its caller about risk."""
    return AnswerThread(request) if callable(request.params.on_risk) else None
