"""RemoteLine: the way to a server, for the callers of an engine what a scheduler is for a pair in this process."""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar, cast

import httpx
import openai
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_before_delay,
    wait_exception,
    wait_random_exponential,
)

from ssd_engine.errors import EngineClosedError
from ssd_engine.remote.answer import RemoteAnswer
from ssd_engine.remote.errors import as_ssd_error, broke_off
from ssd_engine.remote.request import RemoteRequest
from ssd_engine.serving.request import Request

_AT_ONCE = 64
_CONNECT_SECONDS = 10.0
_ASK_SECONDS = 60.0
"""For what is no generation."""
_SILENT_SECONDS = 600.0
"""How long a server may say nothing where the request has no timeout."""
_PATIENCE_SECONDS = {429: 600.0, 503: 30.0}
"""How long a server that takes no request is asked again, by status; a request's own timeout may be shorter."""
_DRAIN_SECONDS = 1.0
"""For what follows the end of an answer, so that its connection serves the next one."""
_LIMITS = httpx.Limits(max_connections=1000, max_keepalive_connections=100)
T = TypeVar("T")


class RemoteLine:
    """Sends requests to a server and delivers their answers, from one thread with an event loop.

    A generation is sent once: again only where the server said (status 429 or 503) that it has not taken it.
    """

    batch_limit = _AT_ONCE

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._client = openai.AsyncOpenAI(
            base_url=url, api_key=key, http_client=httpx.AsyncClient(limits=_LIMITS, follow_redirects=True)
        )
        self._pid = os.getpid()
        self._lock = threading.RLock()  # `close` may be called by a collection of garbage within it
        self._running: dict[Request, tuple[Future[None], RemoteAnswer]] = {}
        self._readers: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, request: Request) -> None:
        """Send a request, from any thread; what comes of it goes to its `deliver`.

        Raises:
            EngineClosedError: the line is closed.
        """
        request = cast("RemoteRequest", request)
        answer = RemoteAnswer(request, self._url)
        with self._lock:
            self._require_open()
            request.submitted = time.perf_counter()
            self._running[request] = (self._started(self._answer(request, answer)), answer)

    def cancel(self, request: Request) -> None:
        """Give a request up: its connection is closed, so that the server stops; nothing more is delivered."""
        request.is_cancelled = True
        if self._is_forked:
            return
        with self._lock:
            job, answer = self._running.get(request, (None, None))
        if answer is not None:
            answer.stop()
        if job is not None and answer is not None and not answer.is_finished:
            job.cancel()

    def ask(self, question: Callable[[openai.AsyncOpenAI], Awaitable[T]]) -> T:
        """The answer to what is no generation; what goes wrong is raised as this package's errors."""

        async def answer() -> T:
            async with asyncio.timeout(_ASK_SECONDS):
                return await question(self._client)

        with self._lock:
            self._require_open()
            job: Future[T] = self._started(answer())
        try:
            return job.result(timeout=2 * _ASK_SECONDS)
        except CancelledError as error:
            raise EngineClosedError("the engine was closed before the server had answered") from error
        except Exception as error:
            raise as_ssd_error(error, self._url) from None

    def wait_for_place(self, timeout: float) -> bool:
        """False: a server is asked again for as long as it makes sense, so there is nothing more to wait for."""
        return False

    @property
    def closed_error(self) -> EngineClosedError | None:
        """What is said to new requests: None while they are taken."""
        if self._is_forked:
            return EngineClosedError(
                f"the engine was made before this process, {os.getpid()}, was forked, and its connections stayed "
                "behind; make an engine in each process, or start processes with 'spawn'"
            )
        return EngineClosedError("the engine is closed; make a new one") if self._closed else None

    @property
    def lost_error(self) -> EngineClosedError | None:
        """The error for a caller that still waits although the thread is gone; None while it lives."""
        thread = self._thread
        if self._is_forked or (thread is not None and not thread.is_alive()):
            return self.closed_error or EngineClosedError("the thread of this engine is gone; make a new engine")
        return None

    @property
    def is_closed(self) -> bool:
        """Whether no request is taken any more: closed, or made before this process was forked."""
        return self._closed or self._is_forked

    @property
    def num_running(self) -> int:
        """Requests that are on their way; which of them wait is known to the server alone."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """0: see `num_running`."""
        return 0

    def close(self) -> None:
        """End every request with `EngineClosedError`, and close the connections; the server goes on."""
        if self.is_closed:
            return
        with self._lock:
            self._closed = True
            for request, (_, answer) in self._running.items():
                answer.stop()
                request.deliver(EngineClosedError("the engine was closed before this request was finished"))
            if self._loop is not None:
                asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    @property
    def _is_forked(self) -> bool:
        return os.getpid() != self._pid

    def _started(self, job: Any) -> Future[Any]:
        """`job` on its way in the loop, which runs from the first one on."""
        if self._loop is None:
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=_run, args=[loop], name="ssd-remote", daemon=True)
            thread.start()
            self._loop, self._thread = loop, thread
        return asyncio.run_coroutine_threadsafe(job, self._loop)

    def _require_open(self) -> None:
        if (error := self.closed_error) is not None:
            raise error

    async def _answer(self, request: RemoteRequest, answer: RemoteAnswer) -> None:
        """Let the answer be read until it ends, its time is over, or the caller gives it up.

        The reader is a task of its own so that it is cancelled once: the end of the time and the caller that gives up
        come at the same moment, and a second cancellation would keep the reader from closing its connection.
        """
        reader = asyncio.create_task(self._read(request, answer))
        self._readers.add(reader)
        try:
            done, _ = await asyncio.wait([reader], timeout=request.remaining)
            if not done and not answer.is_finished:
                answer.stop()
                request.deliver(request.timeout_error or as_ssd_error(TimeoutError(), self._url))
        finally:
            with self._lock:
                self._running.pop(request, None)
            reader.cancel()
            await asyncio.wait([reader])
            self._readers.discard(reader)

    async def _read(self, request: RemoteRequest, answer: RemoteAnswer) -> None:
        try:
            async with await self._begun(request) as chunks:
                async for chunk in chunks:
                    answer.take(chunk)
                    if answer.is_finished:
                        await _drain(chunks)
                    if answer.is_finished or answer.is_over:
                        return
            raise broke_off(self._url, "the connection was closed")
        except Exception as error:
            answer.stop()
            request.deliver(request.timeout_error or as_ssd_error(error, self._url))

    async def _begun(self, request: RemoteRequest) -> openai.AsyncStream[Any]:
        """The stream of the answer, once the server takes the request."""
        silence = _SILENT_SECONDS if request.params.timeout is None else None

        async def send() -> openai.AsyncStream[Any]:
            stream: openai.AsyncStream[Any] = await self._client.with_options(max_retries=0).chat.completions.create(
                **request.arguments, timeout=httpx.Timeout(silence, connect=_CONNECT_SECONDS)
            )
            return stream

        def is_hopeless(state: RetryCallState) -> bool:
            patience = _PATIENCE_SECONDS[_status(_error_of(state))]
            timeout = request.params.timeout
            return stop_before_delay(patience if timeout is None else min(timeout, patience))(state)

        def note(state: RetryCallState) -> None:
            request.refusal = as_ssd_error(_error_of(state), self._url)

        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: _status(error) in _PATIENCE_SECONDS),
            wait=wait_exception(_asked_seconds) + wait_random_exponential(multiplier=0.1, max=5),
            stop=is_hopeless,
            before_sleep=note,
            reraise=True,
        )
        stream: openai.AsyncStream[Any] = await retrying(send)
        request.refusal = None
        return stream

    async def _shut_down(self) -> None:
        loop = asyncio.get_running_loop()
        jobs = asyncio.all_tasks() - {asyncio.current_task()} - self._readers
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, *self._readers, return_exceptions=True)
        with suppress(Exception):
            await self._client.close()
        loop.stop()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


async def _drain(chunks: openai.AsyncStream[Any]) -> None:
    with suppress(Exception):
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for _ in chunks:
                pass


def _error_of(state: RetryCallState) -> Exception:
    error = state.outcome.exception() if state.outcome is not None else None
    assert isinstance(error, Exception)
    return error


def _status(error: BaseException) -> int:
    return error.status_code if isinstance(error, openai.APIStatusError) else 0


def _asked_seconds(error: BaseException) -> float:
    """How long a server wants to be left alone: its header Retry-After, in seconds or as a date (RFC 9110, 10.2.3)."""
    asked = error.response.headers.get("Retry-After", "0") if isinstance(error, openai.APIStatusError) else "0"
    with suppress(ValueError):
        seconds = float(asked)
        return max(seconds, 0.0) if math.isfinite(seconds) else 0.0
    with suppress(ValueError):
        return max(parsedate_to_datetime(asked).timestamp() - time.time(), 0.0)
    return 0.0
