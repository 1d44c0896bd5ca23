"""How the engine's answers come to LlamaIndex: whole or in parts, each scheme switch and alarm reported on the way."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, closing
from typing import TypeVar

from llama_index.core.base.llms.types import ChatResponse, CompletionResponse

from ssd_engine.answers.result import GenerationResult, Piece
from ssd_engine.engine import Engine
from ssd_integrations.llama_index.events import report_risk
from ssd_integrations.llama_index.request import Request

Response = TypeVar("Response", ChatResponse, CompletionResponse)


def generate(engine: Engine, request: Request) -> GenerationResult:
    """The whole answer."""
    for piece in _pieces(engine, request):
        last = piece
    assert last.result is not None
    return last.result


async def agenerate(engine: Engine, request: Request) -> GenerationResult:
    """`generate`, asynchronously."""
    async with aclosing(_apieces(engine, request)) as pieces:
        async for piece in pieces:
            last = piece
    assert last.result is not None
    return last.result


def stream(
    engine: Engine, request: Request, add: Callable[[Piece], Response | None]
) -> Generator[Response, None, None]:
    """What `add` makes of the pieces of an answer."""
    for piece in _pieces(engine, request):
        if (response := add(piece)) is not None:
            yield response


async def astream(
    engine: Engine, request: Request, add: Callable[[Piece], Response | None]
) -> AsyncGenerator[Response, None]:
    """`stream`, asynchronously."""
    async with aclosing(_apieces(engine, request)) as pieces:
        async for piece in pieces:
            if (response := add(piece)) is not None:
                yield response


def _pieces(engine: Engine, request: Request) -> Generator[Piece, None, None]:
    """The pieces of an answer, each reported for the scheme switches and alarms that it brought."""
    with closing(engine.stream(**request.arguments)) as pieces:
        for piece in pieces:
            report_risk(piece)
            yield piece


async def _apieces(engine: Engine, request: Request) -> AsyncGenerator[Piece, None]:
    async with aclosing(engine.astream(**request.arguments)) as pieces:
        async for piece in pieces:
            report_risk(piece)
            yield piece
