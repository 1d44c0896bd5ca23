"""What the tests of vLLM have in common; they run in an environment of its own (`make test-vllm`)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from transformers import PreTrainedModel

VLLM_OPTIONS: dict[str, Any] = {
    "backend": "vllm",
    "dtype": "float32",
    "max_model_len": 512,
    "kv_cache_bytes": 2**28,
}
PROMPTS = [[5 + i, 20, 33 + 2 * i, 47, 60, 71 + i] for i in range(8)]


KEY = "a-key"
SSD = str(Path(sys.executable).with_name("ssd"))


def save_pair(folder: Path, target: PreTrainedModel, draft: PreTrainedModel, tokenizer: Any) -> tuple[str, str]:
    """The folders that a pair was saved in."""
    for name, model in (("target", target), ("draft", draft)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return str(folder / "target"), str(folder / "draft")


class Server:
    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.root = f"http://127.0.0.1:{port}"
        self.url = f"{self.root}/v1"
        self.log = log

    @property
    def client(self) -> Any:
        import openai

        return openai.OpenAI(base_url=self.url, api_key=KEY, max_retries=0)

    def ask(self, question: str, **options: Any) -> Any:
        messages = [{"role": "user", "content": question}]
        defaults = {"model": "pair", "max_tokens": 24, "temperature": 0}
        return self.client.chat.completions.create(messages=messages, **{**defaults, **options})


@contextmanager
def serving(pair: tuple[str, str], folder: Path, *options: str) -> Iterator[Server]:
    port = free_port()
    log = folder / "server.log"
    command = [SSD, "serve", "--target", pair[0], "--draft", pair[1]]
    command += ["--port", str(port), "--name", "pair", "--dtype", "float32", "--kv-cache-bytes", str(2**28)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--max-model-len", "512", *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "SSD_API_KEY": KEY},
        )
    server = Server(process, port, log)
    try:
        wait_until_ready(server)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(server: Server) -> None:
    end = time.monotonic() + 600
    while time.monotonic() < end:
        assert server.process.poll() is None, server.log.read_text()[-3000:]
        try:
            if httpx.get(f"{server.root}/ready", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise AssertionError(server.log.read_text()[-3000:])
