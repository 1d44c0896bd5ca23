"""A server that says what a test wants said, where `ssd serve` could not be brought to say it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Token = tuple[int, str, int]
"""Id, text and trace code."""
CONFIG = {"bin_size": 2, "match_threshold": 1.0, "threshold_decay": 0.0}
ROUNDS: list[list[Token]] = [
    [(5, "One", 9)],
    [(6, " two", 9), (7, " three", 1)],
    [(8, " four", 9), (9, " five", 1)],
]
"""All of them matches."""
RISKY: list[list[Token]] = [
    [(5, "One", 8)],
    [(6, " two", 8)],
    [(7, " three", 10), (8, " four", 2), (9, " five", 2)],
    [(10, " six", 10), (11, " seven", 2)],
]
"""No matches: with bins of two, the third bin ends with the sixth token, the second under Union after " six"."""
MESSAGES = [{"role": "user", "content": "Count."}]


def chunk(tokens: Sequence[Token], finish: str | None = None, *, is_first: bool = False) -> dict[str, Any]:
    """An event of a stream with the tokens of one round, or of several."""
    ssd: dict[str, Any] = {
        "token_codes": "".join(f"{code:x}" for _, _, code in tokens),
        "tokens": [{"id": token_id, "text": text} for token_id, text, _ in tokens],
    }
    if is_first:
        ssd |= {
            "decoding": "ssd",
            "config": CONFIG,
            "prompt_tokens": 12,
            "cached_prompt_tokens": 4,
            "eos_ids": [2],
            "format": {"tools": "hermes", "reasoning": None},
            "reasoning_stage": "over",
        }
    choice = {
        "index": 0,
        "delta": {"content": "".join(text for _, text, _ in tokens)},
        "token_ids": [token_id for token_id, _, _ in tokens],
        "finish_reason": finish,
    }
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "pair",
        "choices": [choice],
        "ssd": ssd,
    }


def answer(rounds: Sequence[Sequence[Token]] = ROUNDS, finish: str | None = "stop") -> list[dict[str, Any]]:
    """The events of a whole answer."""
    last = len(rounds) - 1
    return [
        chunk(tokens, finish if place == last else None, is_first=place == 0) for place, tokens in enumerate(rounds)
    ]


@dataclass(frozen=True)
class Asked:
    """A request that came."""

    command: str
    path: str
    body: dict[str, Any]


class Call(BaseHTTPRequestHandler):
    """A connection to the server, with the request of the moment and the means to answer it."""

    protocol_version = "HTTP/1.1"
    server: Any

    def do_GET(self) -> None:
        self.server.asked.append(Asked(self.command, self.path, {}))
        models = [{"id": name, "object": "model", "created": 1, "owned_by": "us"} for name in self.server.models]
        self.reply(200, {"object": "list", "data": models})

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(Asked(self.command, self.path, self.body))
        with suppress(ConnectionError):
            self.server.script(self)

    def reply(self, status: int, body: dict[str, Any], **headers: str) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def begin(self, *, is_chunked: bool = True) -> None:
        """Begin a stream; without chunks its end is where the connection ends."""
        self._is_chunked = is_chunked
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header(*(("Transfer-Encoding", "chunked") if is_chunked else ("Connection", "close")))
        self.end_headers()

    def send(self, event: dict[str, Any] | str) -> None:
        text = event if isinstance(event, str) else f"data: {json.dumps(event)}\n\n"
        data = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data) if self._is_chunked else data)
        self.wfile.flush()

    def end(self) -> None:
        self.send("data: [DONE]\n\n")
        if self._is_chunked:
            self.wfile.write(b"0\r\n\r\n")

    def cut(self) -> None:
        """End the connection here."""
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Nothing."""


Script = Callable[[Call], None]


def whole(call: Call, events: Sequence[dict[str, Any]] = ()) -> None:
    """A finished stream."""
    call.begin()
    for event in events or answer():
        call.send(event)
    call.end()


def busy(call: Call, seconds: str = "0.05") -> None:
    """Status 429, as `ssd serve` gives it."""
    call.reply(429, {"error": {"message": "too many", "code": 429}}, Retry_After=seconds)


@dataclass
class Told:
    """A server that runs, and what it was asked."""

    url: str
    asked: list[Asked] = field(default_factory=list)

    def posts(self, path: str = "/v1/chat/completions") -> list[Asked]:
        return [asked for asked in self.asked if (asked.command, asked.path) == ("POST", path)]

    def gets(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.command == "GET"]


@contextmanager
def serving(script: Script = whole, models: Sequence[str] = ("pair",)) -> Iterator[Told]:
    """A server at a port of its own; `script` answers each POST in a thread of that request."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, *_: Any) -> None:
            """A connection that was left says nothing."""

    server: Any = Server(("127.0.0.1", 0), Call)
    told = Told(f"http://127.0.0.1:{server.server_port}/v1")
    server.asked, server.script, server.models = told.asked, script, models
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
