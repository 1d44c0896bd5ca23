"""Whatever happens to the worker, every caller has an outcome, and the engine goes on or says why it cannot."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from conftest import wait_for
from outcomes import CALLERS, SECONDS, Outcome
from transformers import PreTrainedTokenizerFast
from worker_cases import PROMPTS, SHORT, Pair, stuck  # noqa: F401 (fixtures)

from ssd_engine import GenerationParams, GenerationResult, Grammar, SSDEngine
from ssd_engine.answers.result import Piece
from ssd_engine.backends.transformers.decoder import PairDecoder
from ssd_engine.errors import EngineBusyError, EngineClosedError, InvalidRequestError, RequestTimeoutError, SSDError
from ssd_engine.serving.decoder import DecoderError
from ssd_engine.serving.delivery import apieces_of
from ssd_engine.serving.request import Request


class FaultyDecoder:
    """The engine's own decoder, which raises at the given call of one of its methods."""

    def __init__(self, decoder: Any, method: str, call: int, error: BaseException) -> None:
        self._decoder = decoder
        self._calls_left = call
        self._error = error
        self.has_raised = threading.Event()
        setattr(self, method, self._faulty(getattr(decoder, method)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def _faulty(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self._calls_left -= 1
            if self._calls_left == 0:
                self.has_raised.set()
                raise self._error
            return method(*arguments)

        return call


@pytest.mark.parametrize(
    "error",
    [ValueError("bad luck"), SystemExit(3), DecoderError("the models have died")],
    ids=lambda e: type(e).__name__,
)
@pytest.mark.parametrize("call", [1, 3, 6])
@pytest.mark.parametrize("method", ["open", "read_prompts", "round", "close"])
def test_every_caller_has_an_outcome_wherever_the_decoder_fails(
    tiny_pair: Pair, tokenizer: PreTrainedTokenizerFast, method: str, call: int, error: BaseException
) -> None:
    """Six callers of six kinds, on an engine that takes three at once; the first, a middle or the last call fails."""
    with SSDEngine(*tiny_pair, tokenizer, max_batch_size=3) as engine:
        expected = [engine.generate(prompt, SHORT).token_ids for prompt in PROMPTS]
    engine = SSDEngine(*tiny_pair, tokenizer, max_batch_size=3, prefix_cache_bytes=0)
    decoder = FaultyDecoder(engine._scheduler._decoder, method, call, error)
    engine._scheduler._decoder = decoder
    outcomes = [
        Outcome(lambda caller=caller, prompt=prompt: caller(engine, prompt, SHORT))  # type: ignore[misc]
        for caller, prompt in zip(CALLERS, PROMPTS, strict=True)
    ]
    results = [outcome.get() for outcome in outcomes]
    assert decoder.has_raised.is_set()
    for result, token_ids in zip(results, expected, strict=True):
        if isinstance(result, EngineClosedError):
            assert result.__cause__ is error
        elif isinstance(result, BaseException):
            assert result is error
        else:
            assert result.token_ids == token_ids
    afterwards = Outcome(lambda: engine.generate(PROMPTS[0], SHORT)).get()
    assert engine.is_closed or not isinstance(error, DecoderError | SystemExit)
    if engine.is_closed:
        assert isinstance(afterwards, EngineClosedError)
        assert afterwards.__cause__ is error
        assert type(error).__name__ in str(afterwards)
    else:
        assert afterwards.token_ids == expected[0]
        assert any(isinstance(result, BaseException) for result in results)
    engine.close()


@pytest.mark.parametrize("where", ["the pass", "the end of the round"])
def test_a_roll_back_that_fails_costs_its_own_request_alone(tiny_engine: SSDEngine, where: str) -> None:
    """Three requests with grammars in one round; something fails, and then one grammar cannot go back."""
    params = GenerationParams(max_new_tokens=30, grammar=Grammar(regex="[a-z ]{40}"))
    expected = [tiny_engine.generate(prompt, params).token_ids for prompt in PROMPTS[:3]]
    decoder: Any = tiny_engine._scheduler._decoder  # type: ignore[attr-defined]
    advance, has_failed = decoder._round, threading.Event()

    def fail_once(sequences: Any) -> Any:
        if len(sequences) < 3 or has_failed.is_set():
            return advance(sequences)
        has_failed.set()
        broken = sequences[1].guide

        def go_back(num_tokens: int) -> None:
            raise SSDError("this grammar cannot go back")

        broken.go_back = go_back
        if where == "the pass":
            raise ValueError("bad luck")
        return advance(sequences)  # at its end every grammar goes back to what stands

    decoder._round = fail_once
    results = Outcome(lambda: tiny_engine.batch(PROMPTS[:3], params)).get()
    assert has_failed.is_set()
    failed = [isinstance(result, SSDError) for result in results]
    assert failed.count(True) == 1
    for result, token_ids in zip(results, expected, strict=True):
        assert isinstance(result, SSDError) or result.token_ids == token_ids


def test_a_prompt_that_cannot_be_read_costs_its_own_request_alone(
    tiny_pair: Pair, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three prompts that are read in the same passes."""
    monkeypatch.setattr(PairDecoder, "parts_at_once", 4)
    with SSDEngine(*tiny_pair, tokenizer, prefix_cache_bytes=0) as engine:
        expected = [engine.generate(prompt, SHORT).token_ids for prompt in PROMPTS[:3]]
        decoder: Any = engine._scheduler._decoder  # type: ignore[attr-defined]
        broken, read, most_rows = PROMPTS[1], decoder._target.read_blocks, [0]

        def fail(rows: Any) -> None:
            most_rows[0] = max(most_rows[0], len({id(row) for row in rows}))
            if any(row.token_ids == broken for row in rows):
                raise ValueError("bad luck")
            read(rows)

        decoder._target.read_blocks = fail
        results = Outcome(lambda: engine.batch(PROMPTS[:3], SHORT)).get()
    assert most_rows[0] > 1
    assert isinstance(results[1], ValueError)
    assert [results[0].token_ids, results[2].token_ids] == [expected[0], expected[2]]


def test_a_request_that_cannot_be_opened_leaves_its_room_to_the_next(
    tiny_pair: Pair, tokenizer: PreTrainedTokenizerFast
) -> None:
    """One that needs the whole cache."""
    with SSDEngine(*tiny_pair, tokenizer, kv_cache_bytes=80 * 1024) as engine:
        decoder: Any = engine._scheduler._decoder  # type: ignore[attr-defined]
        whole = GenerationParams(max_new_tokens=decoder.positions - 2)
        open_row = decoder._draft.open

        def fail(*_: Any) -> None:
            decoder._draft.open = open_row
            raise MemoryError("no room")

        decoder._draft.open = fail
        assert isinstance(Outcome(lambda: engine.generate([1, 2], whole)).get(), MemoryError)
        assert Outcome(lambda: engine.generate([1, 2], whole)).get().token_ids


def test_a_request_that_never_finds_room_on_an_idle_engine_is_told_so(tiny_engine: SSDEngine) -> None:
    class FullDecoder:
        def open(self, *_: Any) -> None:
            return None

        def shut_down(self) -> None:
            pass

    tiny_engine._scheduler._decoder = FullDecoder()  # type: ignore[assignment]
    assert isinstance(Outcome(lambda: tiny_engine.generate([1, 2], SHORT)).get(), SSDError)


@pytest.mark.parametrize("caller", CALLERS)
def test_a_timeout_holds_while_the_worker_stands_still(stuck: SSDEngine, caller: Any) -> None:
    error = Outcome(lambda: caller(stuck, [1, 2], GenerationParams(timeout=0.2))).get()
    assert isinstance(error, RequestTimeoutError)
    assert "0.2 s" in str(error)
    assert stuck.num_waiting == 0


def test_a_timeout_counts_from_the_submission(tiny_engine: SSDEngine) -> None:
    """A stream is submitted when it is first read."""
    pieces = tiny_engine.stream([1, 2], GenerationParams(max_new_tokens=3, timeout=1))
    threading.Event().wait(1.2)  # longer than the timeout: nothing else can tell the two apart
    *_, last = pieces
    assert last.result is not None


# -- The line --


def test_a_full_line_turns_the_next_request_away(tiny_pair: Pair, tokenizer: PreTrainedTokenizerFast) -> None:
    with SSDEngine(*tiny_pair, tokenizer, max_batch_size=1, max_waiting=2) as engine:
        running = engine.stream([1, 2], GenerationParams(max_new_tokens=1500))
        next(running)
        waiting = [Outcome(lambda: engine.generate([1, 2], SHORT)) for _ in range(2)]
        wait_for(lambda: engine.num_waiting == 2)
        with pytest.raises(EngineBusyError, match="2 requests wait"):
            engine.generate([1, 2], SHORT)
        running.close()
        assert all(isinstance(outcome.get(), GenerationResult) for outcome in waiting)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_batch_that_is_longer_than_the_line_loses_nothing(
    tiny_pair: Pair, tokenizer: PreTrainedTokenizerFast, is_async: bool
) -> None:
    prompts = [[1, 2, 3 + i] for i in range(20)]
    with SSDEngine(*tiny_pair, tokenizer, max_batch_size=2, max_waiting=3) as engine:
        expected = [engine.generate(prompt, SHORT).token_ids for prompt in prompts]
        results = asyncio.run(engine.abatch(prompts, SHORT)) if is_async else engine.batch(prompts, SHORT)
        assert [result.token_ids for result in results if isinstance(result, GenerationResult)] == expected


@pytest.mark.parametrize("is_async", [False, True])
def test_batches_that_share_a_short_line_lose_nothing(
    tiny_pair: Pair, tokenizer: PreTrainedTokenizerFast, is_async: bool
) -> None:
    prompts = [[1, 2, 3 + i] for i in range(12)]
    with SSDEngine(*tiny_pair, tokenizer, max_batch_size=1, max_waiting=1) as engine:

        def ask() -> list[Any]:
            return asyncio.run(engine.abatch(prompts, SHORT)) if is_async else engine.batch(prompts, SHORT)

        outcomes = [Outcome(ask) for _ in range(3)]
        for outcome in outcomes:
            assert all(isinstance(result, GenerationResult) for result in outcome.get())


def test_the_work_of_waiting_for_a_batch_grows_with_its_length(
    tiny_engine: SSDEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in looks at what is left of a request's time."""
    looks = 0
    remaining = Request.remaining.fget
    assert remaining is not None

    def counted(request: Request) -> float | None:
        nonlocal looks
        looks += 1
        return remaining(request)

    monkeypatch.setattr(Request, "remaining", property(counted))
    prompts = [[1, 2, 3 + i] for i in range(150)]
    results = tiny_engine.batch(prompts, GenerationParams(max_new_tokens=1, timeout=600))
    assert all(isinstance(result, GenerationResult) for result in results)
    assert looks < 40 * len(prompts)


def test_a_request_that_is_given_up_leaves_the_line(stuck: SSDEngine) -> None:
    outcomes = [Outcome(lambda: stuck.generate([1, 2], GenerationParams(timeout=0.5))) for _ in range(5)]
    wait_for(lambda: stuck.num_waiting == 5)
    assert all(isinstance(outcome.get(), RequestTimeoutError) for outcome in outcomes)
    assert stuck.num_waiting == 0


class IdleLine:
    """A line in which nothing comes of a request but what a test says."""

    lost_error = None

    def submit(self, request: Request) -> None:
        self.request = request

    def cancel(self, request: Request) -> None:
        pass


async def test_a_cancellation_is_not_lost_to_a_piece_that_comes_at_the_same_moment(tiny_engine: SSDEngine) -> None:
    line: Any = IdleLine()
    events: asyncio.Queue[Any] = asyncio.Queue()
    request = tiny_engine._request([1, 2], SHORT, None, None, events.put_nowait)

    async def read() -> None:
        async for _ in apieces_of(line, request, events):
            pass

    task = asyncio.create_task(read())
    while not hasattr(line, "request"):
        await asyncio.sleep(0)
    await asyncio.sleep(0)  # it waits now
    request.deliver(Piece())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, SECONDS)


# -- Text --


def test_a_message_of_all_private_characters_is_answered(tiny_engine: SSDEngine) -> None:
    text = "".join(map(chr, range(0xE000, 0xF900)))
    for prompt in ([{"role": "user", "content": text}], text):
        for caller in CALLERS:
            outcome = Outcome(lambda caller=caller, prompt=prompt: caller(tiny_engine, prompt, SHORT)).get()  # type: ignore[misc]
            # It is longer than the model's context: that is what is to be said, and nothing else.
            assert isinstance(outcome, InvalidRequestError)
            assert "context" in str(outcome)


def test_a_message_of_every_private_character_there_is_is_refused(tiny_engine: SSDEngine) -> None:
    areas = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
    text = "".join(chr(i) for area in areas for i in area)
    with pytest.raises(InvalidRequestError, match="137468 characters"):
        tiny_engine.generate([{"role": "user", "content": text}], SHORT)
