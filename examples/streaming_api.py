"""A FastAPI endpoint that streams answers as server-sent events, and its client, which reads them over HTTP.

Run it with `python examples/streaming_api.py` where the package is installed with its extra `examples`. Where a client
hangs up, its answer is decoded no further.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel
from rich.console import Console

from ssd_integrations.langchain import ChatSSD

console = Console(highlight=False, soft_wrap=True)

STREAMED = "Name three rivers in France and the cities that they run through, one a line."
AT_ONCE = ("What is the capital of Italy? Answer in one sentence.", "What is 12 times 12? Answer in one sentence.")
SECONDS = 300.0
"""How long the client waits for the next piece, the first one's place in line included."""


class Question(BaseModel):
    text: str


def make_app(model: ChatSSD) -> FastAPI:
    app = FastAPI(title="Answers")

    @app.post("/answers", response_class=EventSourceResponse)
    async def answer(question: Question) -> AsyncIterator[ServerSentEvent]:
        """The answer's text in pieces (event `text`), then what is known of it as a whole (event `end`)."""
        whole: Any = None
        async for chunk in model.astream(question.text):
            whole = chunk if whole is None else whole + chunk
            if chunk.text:
                yield ServerSentEvent(event="text", data=chunk.text)
        tokens, trace = whole.usage_metadata["output_tokens"], whole.response_metadata["ssd"]
        yield ServerSentEvent(event="end", data={"tokens": tokens, "risk": trace["risk"]})

    return app


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[str]:
    """The address of `app` on this machine, for as long as the context lasts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


async def events(address: str, text: str) -> AsyncIterator[tuple[str, Any]]:
    """What comes of a question: each event's name and its data, as it arrives."""
    async with (
        httpx.AsyncClient(base_url=address, timeout=SECONDS) as client,
        client.stream("POST", "/answers", json={"text": text}) as response,
    ):
        response.raise_for_status()
        name = ""
        async for line in response.aiter_lines():
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                yield name, json.loads(value)


async def whole_answer(address: str, text: str) -> str:
    return "".join([data async for name, data in events(address, text) if name == "text"])


async def main(model: ChatSSD) -> None:
    async with serving(make_app(model)) as address:
        console.rule("One client, piece by piece")
        console.print(f"[bold]user[/]   {STREAMED}\n[bold]model[/]  ", end="")
        async for name, data in events(address, STREAMED):
            if name == "text":
                console.print(data, end="", markup=False)
            else:
                console.print(f"\n{data}", style="dim")

        console.rule("Two clients at once")
        answers = await asyncio.gather(*(whole_answer(address, text) for text in AT_ONCE))
        for text, answer in zip(AT_ONCE, answers, strict=True):
            console.print(f"[bold]user[/]   {text}\n[bold]model[/]  {answer}")


if __name__ == "__main__":
    chat_model = ChatSSD()
    with console.status("Loading the models"):
        chat_model.load()
    asyncio.run(main(chat_model))
