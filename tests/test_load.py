"""Many different requests at once on one engine: each is answered as it is alone, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
from conftest import wait_for

from ssd_engine import GenerationParams, GenerationResult, Grammar, SSDEngine
from ssd_engine.errors import ContextLengthError, InvalidRequestError

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "paint",
            "parameters": {
                "type": "object",
                "properties": {"size": {"enum": ["small", "large"]}, "coats": {"type": "integer", "maximum": 99}},
                "required": ["size", "coats"],
            },
        },
    }
]
MOOD = {"type": "object", "properties": {"mood": {"enum": ["calm", "cross"]}}, "required": ["mood"]}


@dataclass(frozen=True)
class Ask:
    """One request of the crowd."""

    kind: str
    prompt: Any
    params: GenerationParams
    tools: list[dict[str, Any]] | None = None


def crowd(number: int, start: int = 0, longest: int = 40) -> list[Ask]:
    """Requests of every kind, each with words and settings of its own."""
    rng = random.Random(start)
    kinds = ("whole", "streamed", "tools", "structured", "cancelled", "invalid", "too long", "uncompilable")
    asks = []
    for i in range(number):
        kind = kinds[i % len(kinds)]
        words = " ".join(
            rng.choice(["fox", "dog", "café", "你好", "weather", "Paris"]) for _ in range(rng.randint(1, 40))
        )
        fields: dict[str, Any] = {"max_new_tokens": rng.randint(4, longest), "temperature": i % 2, "seed": start + i}
        if kind == "tools":
            fields |= {"tool_choice": "any", "max_new_tokens": 120, "parallel_tool_calls": False}
        if kind == "structured":
            fields |= {"grammar": Grammar(json_schema=MOOD), "max_new_tokens": 120}
        if kind == "cancelled":
            fields["max_new_tokens"] = 1500
        if kind == "too long":
            fields["max_new_tokens"] = 100_000
        if kind == "uncompilable":
            fields["grammar"] = Grammar(regex="(")
        prompt = [{"role": "user" if kind != "invalid" else "nobody", "content": words}]
        asks.append(Ask(kind, prompt, GenerationParams(**fields), TOOLS if kind == "tools" else None))
    return asks


async def whole(engine: SSDEngine, ask: Ask) -> GenerationResult:
    return await engine.agenerate(ask.prompt, ask.params, tools=ask.tools)


async def streamed(engine: SSDEngine, ask: Ask) -> GenerationResult:
    text, result = "", None
    async for piece in engine.astream(ask.prompt, ask.params, tools=ask.tools):
        text, result = text + piece.text, piece.result
    assert result is not None
    assert text == result.text
    return result


async def cancelled(engine: SSDEngine, ask: Ask) -> None:
    """Leaves after its first piece."""
    task = asyncio.create_task(streamed(engine, ask))
    async for _ in engine.astream(ask.prompt, ask.params):
        break
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def refused(engine: SSDEngine, ask: Ask) -> None:
    error = ContextLengthError if ask.kind == "too long" else InvalidRequestError
    with pytest.raises(error):
        await engine.agenerate(ask.prompt, ask.params, tools=ask.tools)


ROUTES: dict[str, Callable[[SSDEngine, Ask], Awaitable[GenerationResult | None]]] = {
    "whole": whole,
    "streamed": streamed,
    "tools": streamed,
    "structured": whole,
    "cancelled": cancelled,
    "invalid": refused,
    "too long": refused,
    "uncompilable": refused,
}


def without_ids(result: GenerationResult) -> tuple[Any, ...]:
    """All that an answer says, but for what is made anew each time: ids of calls, and times."""
    calls = [(call.name, call.arguments) for call in result.tool_calls]
    return result.text, result.token_ids, result.finish_reason, calls, result.trace.matched, result.trace.schemes


async def test_a_mixed_crowd_gets_the_answers_that_each_gets_alone(tiny_engine: SSDEngine) -> None:
    others = set(threading.enumerate())
    asks = crowd(32)
    alone = [
        without_ids(tiny_engine.generate(ask.prompt, ask.params, tools=ask.tools))
        if ask.kind in ("whole", "streamed", "tools", "structured")
        else None
        for ask in asks
    ]
    threads, tasks = threading.active_count(), asyncio.all_tasks()
    together = await asyncio.gather(*(ROUTES[ask.kind](tiny_engine, ask) for ask in asks))
    for ask, answer, expected in zip(asks, together, alone, strict=True):
        assert (None if answer is None else without_ids(answer)) == expected, ask.kind
    await asyncio.to_thread(wait_for, lambda: tiny_engine.is_idle)
    assert asyncio.all_tasks() == tasks
    # The loop keeps its own pool of threads; the engine has its one worker, then as before.
    workers = [thread for thread in threading.enumerate() if thread.name == "ssd-engine" and thread not in others]
    assert len(workers) == 1
    assert threading.active_count() - threads <= 32
    tiny_engine.close()
    assert not workers[0].is_alive()


async def test_memory_is_flat_over_500_requests(tiny_pair: Any, tokenizer: Any) -> None:
    """In crowds of 32, each of other requests; run with `-s` it prints the figures of the documentation."""
    process, memory, answered = psutil.Process(), [], 0
    with SSDEngine(*tiny_pair, tokenizer=tokenizer, prefix_cache_bytes=2**20) as engine:
        for start in range(0, 512, 32):
            asks = crowd(32, start, longest=12)
            answers = await asyncio.gather(*(ROUTES[ask.kind](engine, ask) for ask in asks))
            answered += sum(answer is not None for answer in answers)
            gc.collect()
            memory.append(process.memory_info().rss / 1e6)
        await asyncio.to_thread(wait_for, lambda: engine.is_idle)
    settled = memory[3:]  # after the first hundred: compiled code, pools of threads and of memory have their size
    print(
        f"\n512 requests in crowds of 32: {answered} answered, the others cancelled or refused as they had to be; "
        f"memory {min(settled):.0f} to {max(settled):.0f} MB after the first hundred, {settled[-1]:.0f} MB at the end"
    )
    assert answered == 256
    assert max(settled) < settled[0] * 1.05
