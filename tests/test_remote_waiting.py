"""`RemoteEngine` where its server takes long, or is busy: whoever waits is told in time; no connection stays open."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from conftest import wait_for
from remote_cases import MESSAGES, Call, answer, busy, chunk, serving, whole

from ssd_engine import GenerationParams
from ssd_engine.errors import EngineBusyError, EngineClosedError, RequestTimeoutError

pytest.importorskip("openai")
from remote_ways import LONG_ENOUGH, every_way, generated

from ssd_engine.remote.engine import RemoteEngine


class Trickle:
    """A server that always has a little more to say, and the moment when nobody listens any more."""

    def __init__(self, event: dict[str, Any] | str | None) -> None:
        self.event = event
        self.is_left = threading.Event()

    def __call__(self, call: Call) -> None:
        try:
            if self.event is None:
                call.connection.recv(1)  # until the other side goes
            else:
                call.begin()
                call.send(answer()[0])
                while not self.is_left.wait(0.01):
                    call.send(self.event)
        finally:
            self.is_left.set()


@every_way
@pytest.mark.parametrize(
    "event", [": nothing yet\n\n", chunk([(6, " and", 9)]), None], ids=["comments", "tokens", "silence"]
)
def test_a_timeout_holds_for_the_whole_answer_and_the_connection_is_closed(event: Any, way: str) -> None:
    trickle = Trickle(event)
    params = GenerationParams(max_new_tokens=100_000, timeout=0.5)
    with serving(trickle) as server, RemoteEngine(server.url) as engine:
        with pytest.raises(RequestTimeoutError, match=r"0\.5"):
            generated(engine, way, params)
        wait_for(trickle.is_left.is_set)
        assert len(server.posts()) == 1


def test_every_connection_of_a_batch_that_ran_out_of_time_is_closed() -> None:
    """Caller and connection see the end of the time at once, in any order; 120 of them, for every order to occur."""
    trickles = []

    def script(call: Call) -> None:
        trickles.append(Trickle(chunk([(6, " and", 9)])))
        trickles[-1](call)

    params = GenerationParams(max_new_tokens=100_000, timeout=0.3)
    with serving(script) as server, RemoteEngine(server.url) as engine:
        for _ in range(15):
            results = engine.batch([MESSAGES] * 8, params)
            assert all(isinstance(result, RequestTimeoutError) for result in results)
        assert trickles
        wait_for(lambda: all(trickle.is_left.is_set() for trickle in trickles))


@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_stream_that_is_left_closes_its_connection(way: str) -> None:
    trickle = Trickle(chunk([(6, " and", 9)]))

    async def leave() -> None:
        pieces = engine.astream(MESSAGES, LONG_ENOUGH)
        await anext(pieces)
        await pieces.aclose()

    with serving(trickle) as server, RemoteEngine(server.url) as engine:
        if way == "async":
            asyncio.run(leave())
        else:
            stream = engine.stream(MESSAGES, LONG_ENOUGH)
            next(stream)
            stream.close()
        wait_for(trickle.is_left.is_set)


@every_way
def test_a_busy_server_is_waited_for(way: str) -> None:
    statuses = iter([429, 429, 503])

    def script(call: Call) -> None:
        status = next(statuses, None)
        if status is None:
            whole(call)
        else:
            call.reply(status, {"error": {"message": "not now", "code": status}}, Retry_After="0.01")

    with serving(script) as server, RemoteEngine(server.url) as engine:
        assert generated(engine, way).finish_reason == "stop"
        assert len(server.posts()) == 4


@every_way
def test_a_server_that_stays_busy_is_told(way: str) -> None:
    params = GenerationParams(max_new_tokens=50, timeout=1.0)
    with serving(busy) as server, RemoteEngine(server.url) as engine:
        with pytest.raises(EngineBusyError, match="too many"):
            generated(engine, way, params)
        assert len(server.posts()) > 1


def test_a_servers_wish_to_wait_longer_than_there_is_time_is_told_at_once() -> None:
    params = GenerationParams(max_new_tokens=50, timeout=30)
    with serving(lambda call: busy(call, "3600")) as server, RemoteEngine(server.url) as engine:
        with pytest.raises(EngineBusyError):
            engine.generate(MESSAGES, params)
        assert len(server.posts()) == 1


@pytest.mark.parametrize("way", ["batch", "abatch"])
def test_a_batch_takes_what_the_server_takes_and_loses_nothing(way: str) -> None:
    slots = threading.Semaphore(8)
    under_way, most = [0], [0]
    lock = threading.Lock()

    def script(call: Call) -> None:
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        if slots.acquire(blocking=False):
            try:
                whole(call)
            finally:
                slots.release()
        else:
            busy(call, "0.01")
        with lock:
            under_way[0] -= 1

    prompts = [MESSAGES] * 500
    with serving(script) as server, RemoteEngine(server.url) as engine:
        results = engine.batch(prompts) if way == "batch" else asyncio.run(engine.abatch(prompts))
    assert [result for result in results if isinstance(result, Exception)] == []
    assert len(results) == 500
    assert most[0] <= 64


@every_way
def test_what_runs_when_an_engine_is_closed_is_told(way: str) -> None:
    trickle = Trickle(chunk([(6, " and", 9)]))
    with serving(trickle) as server:
        engine = RemoteEngine(server.url)
        closing = threading.Thread(target=lambda: (wait_for(lambda: bool(server.posts())), engine.close()))
        closing.start()
        with pytest.raises(EngineClosedError):
            generated(engine, way, GenerationParams(max_new_tokens=100_000))
        closing.join()
        with pytest.raises(EngineClosedError):
            generated(engine, way)
        wait_for(trickle.is_left.is_set)
