"""How tests run the `ssd` command, offline and on a small random pair."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import sys
import termios
from pathlib import Path

import pytest
from conftest import make_model, make_relative
from huggingface_hub import constants
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from ssd_engine.cli import app

LONG_ANSWER = 8000
"""Tokens: more than a test waits for."""
PATIENCE = 120
"""Seconds without a sign of life after which a test on a terminal fails instead of waiting for ever."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The options that name a small pair in folders."""
    folder = tmp_path_factory.mktemp("pair")
    target = make_model(1, len(tokenizer), context=2 * LONG_ANSWER)
    for name, model in (("target", target), ("draft", make_relative(target, 2, 0.15))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return ["--target", str(folder / "target"), "--draft", str(folder / "draft")]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub, no package index, nothing fetched or said yet, and a wide terminal."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("SSD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")


def ssd(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=text)


def answer(*arguments: str, text: str | None = None) -> dict[str, object]:
    """What `ssd run --json` prints."""
    result = ssd("run", *arguments, "--json", text=text)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        """`arguments`: of this Python."""
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            # As a terminal has it, also where the tests were started in the background, with the signal ignored.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            termios.tcsetwinsize(pty.STDOUT_FILENO, (24, 200))
            os.execvp(sys.executable, [sys.executable, *arguments])
        self.screen = ""

    @classmethod
    def of_ssd(cls, *arguments: str) -> Terminal:
        """`ssd` with these arguments."""
        return cls("-c", "from ssd_engine.cli import main; main()", *arguments)

    def read_until(self, wanted: str) -> None:
        """Wait until `wanted`, a pattern, is among what came since the last call."""
        begin = len(self.screen)
        while not re.search(wanted, self.screen[begin:]):
            ready, _, _ = select.select([self._terminal], [], [], PATIENCE)
            assert ready, f"no {wanted!r} in {self.screen[begin:]!r}"
            self.screen += os.read(self._terminal, 65536).decode(errors="replace")

    def read_to_the_end(self) -> str:
        """All that the program shows until it ends, as it should."""
        with contextlib.suppress(OSError):  # Linux's word for a terminal that nobody writes to any more
            while part := os.read(self._terminal, 65536):
                self.screen += part.decode(errors="replace")
        assert self.exit_code() == 0, self.screen
        self.close()
        return self.screen

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def exit_code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        os.close(self._terminal)
