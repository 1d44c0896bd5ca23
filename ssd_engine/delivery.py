"""How pieces come from the worker thread to the caller: a queue for threads, the event loop's own for tasks."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Callable, Generator

from ssd_engine.result import GenerationResult, Piece
from ssd_engine.scheduler import Event, Request


def piece_or_raise(event: Event) -> Piece:
    """The piece that was delivered; an exception that was delivered is raised."""
    if isinstance(event, BaseException):
        raise event
    return event


def drain(request: Request, events: queue.SimpleQueue[Event]) -> Generator[Piece, None, None]:
    """The pieces of a submitted request; leaving early cancels it."""
    try:
        while True:
            piece = piece_or_raise(events.get())
            yield piece
            if piece.result is not None:
                return
    finally:
        request.cancel()


def outcome(request: Request, events: queue.SimpleQueue[Event]) -> GenerationResult | Exception:
    """The result of a submitted request, or what went wrong in its place."""
    try:
        *_, last = drain(request, events)
    except Exception as error:
        return error
    assert last.result is not None
    return last.result


def into_loop(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event]) -> Callable[[Event], None]:
    """A `deliver` for the worker thread that hands events to a task's loop."""

    def deliver(event: Event) -> None:
        # A loop that is closed has no task left that waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(events.put_nowait, event)

    return deliver
