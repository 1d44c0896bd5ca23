"""How pieces come from the worker to the caller: a queue for threads, the event loop's own for tasks.

Whoever waits here looks after itself: it sees that its request has run out of time, or that the worker is gone, also
where nobody is left to tell it.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from functools import partial
from typing import Protocol, TypeVar

from ssd_engine.answers.result import GenerationResult, Piece
from ssd_engine.errors import EngineBusyError, EngineClosedError
from ssd_engine.serving.request import Event, Request, is_last

_CHECK_SECONDS = 30.0
"""How often a caller that waits looks whether there is still a worker. Whatever ends a worker, it tells; this is for
one that could not even do that."""
Deliver = Callable[[Event], None]
E = TypeVar("E")


class Line(Protocol):
    """Where requests are put to be answered: the scheduler of a pair in this process, or the way to a server."""

    @property
    def batch_limit(self) -> int:
        """Most requests of one batch that are under way together."""

    def submit(self, request: Request) -> None:
        """Put a request in line; its pieces go to its `deliver`."""

    def wait_for_place(self, timeout: float) -> bool:
        """After `EngineBusyError`: wait, at most `timeout` seconds, for a place; False where that is of no use."""

    def cancel(self, request: Request) -> None:
        """Give a request up; nothing more is delivered."""

    @property
    def closed_error(self) -> EngineClosedError | None:
        """What is said to new requests: None while they are taken."""

    @property
    def lost_error(self) -> EngineClosedError | None:
        """The error for a caller that still waits although the worker is gone; None while it lives."""

    @property
    def is_closed(self) -> bool:
        """Whether no request is taken any more."""

    @property
    def num_running(self) -> int:
        """Requests that are being answered."""

    @property
    def num_waiting(self) -> int:
        """Requests that wait for their turn."""

    def close(self) -> None:
        """End every request with `EngineClosedError`, and take no more."""


def pieces_of(line: Line, request: Request, events: queue.SimpleQueue[Event]) -> Generator[Piece, None, None]:
    """Submit a request and give its pieces, which come in `events`; leaving early cancels it."""
    line.submit(request)
    try:
        piece = Piece()
        while piece.result is None:
            piece = _piece_or_raise(_next_event(line, request, events))
            yield piece
    finally:
        line.cancel(request)


async def apieces_of(line: Line, request: Request, events: asyncio.Queue[Event]) -> AsyncGenerator[Piece, None]:
    """`pieces_of` for an event loop."""
    line.submit(request)
    try:
        piece = Piece()
        while piece.result is None:
            piece = _piece_or_raise(await _anext_event(line, request, events))
            yield piece
    finally:
        line.cancel(request)


def into_loop(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event]) -> Deliver:
    """A `deliver` for other threads that hands events to a task's loop."""

    def deliver(event: Event) -> None:
        # A loop that is closed has no task left that waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(events.put_nowait, event)

    return deliver


def results_of(line: Line, prepare: Sequence[Callable[[Deliver], Request]]) -> list[GenerationResult | Exception]:
    """Prepare and answer requests, at most `batch_limit` of them under way; what goes wrong stands in its place.

    The requests have one timeout, so that the one that was submitted first runs out of time first.
    """
    results: dict[int, GenerationResult | Exception] = {}
    requests: dict[int, Request] = {}
    events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
    left = deque(enumerate(prepare))

    def deliver(index: int, event: Event) -> None:
        if is_last(event):
            events.put((index, event))

    try:
        while left or requests:
            while left and len(requests) < line.batch_limit:
                index, make = left.popleft()
                try:
                    request = make(partial(deliver, index))
                    line.submit(request)
                except EngineBusyError as error:  # the line is full of others' requests
                    if requests or line.wait_for_place(_CHECK_SECONDS):
                        left.appendleft((index, make))
                        break
                    results[index] = error
                except Exception as error:
                    results[index] = error
                else:
                    requests[index] = request
            if requests:
                first = next(iter(requests))
                ended = _next_event(line, requests[first], events)
                index, event = ended if isinstance(ended, tuple) else (first, ended)
                if index in requests:
                    line.cancel(requests.pop(index))
                    results[index] = _result_of(event)
    finally:
        for request in requests.values():
            line.cancel(request)
    return [results[index] for index in range(len(prepare))]


def _next_event(line: Line, request: Request, events: queue.SimpleQueue[E]) -> E | BaseException:
    """What the caller is told next; an error of `request` that nobody tells, if need be by itself."""
    error: BaseException | None = line.lost_error
    while error is None:
        with contextlib.suppress(queue.Empty):
            return events.get(timeout=_patience(request))
        error = _overdue(line, request)
    with contextlib.suppress(queue.Empty):
        return events.get_nowait()  # came while it was looked for what is wrong
    return error


async def _anext_event(line: Line, request: Request, events: asyncio.Queue[Event]) -> Event:
    error: BaseException | None = line.lost_error
    while error is None:
        with contextlib.suppress(TimeoutError):
            # Not `wait_for`, which (Python 3.11) forgets a cancellation that comes together with an event.
            async with asyncio.timeout(_patience(request)):
                return await events.get()
        error = _overdue(line, request)
    await asyncio.sleep(0)  # for what the loop was given meanwhile
    return error if events.empty() else events.get_nowait()


def _patience(request: Request) -> float:
    """Seconds to wait before a request is looked after."""
    return _CHECK_SECONDS if request.remaining is None else min(_CHECK_SECONDS, request.remaining)


def _overdue(line: Line, request: Request) -> Exception | None:
    """What a request's caller has to be told although nobody tells it."""
    return request.timeout_error or line.lost_error


def _piece_or_raise(event: Event) -> Piece:
    if isinstance(event, BaseException):
        raise event
    return event


def _result_of(event: Event) -> GenerationResult | Exception:
    if isinstance(event, Exception):
        return event
    result = _piece_or_raise(event).result
    assert result is not None
    return result
