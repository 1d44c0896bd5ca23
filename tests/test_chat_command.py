"""`ssd chat`, in a pipe and on a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import sys
from collections.abc import Iterator

import pytest
from command_cases import LONG_ANSWER, PATIENCE, answer, offline, pair, ssd  # noqa: F401 (fixtures)


def test_chat_answers_remembers_and_shows_the_bins(pair: list[str]) -> None:
    lines = ["/trace", "hello", "/trace", "/nonsense", "/help", "/system Be brief.", "again", "/reset", "/exit", "no"]
    result = ssd("chat", *pair, "--max-tokens", "21", text="\n".join(lines))
    assert result.exit_code == 0, result.output
    assert "target + draft" in result.stderr
    assert "no finished answer yet" in result.stderr
    assert re.search(r"Bin.*Match ratio.*Threshold.*Scheme.*Next scheme", result.stdout)
    assert len(re.findall(r"│ [123] +│ [01]\.\d\d +│ 0\.\d\d +│ (?:intersection|union)", result.stdout)) == 3
    assert "There is no command /nonsense" in result.stderr
    assert "Ctrl-C stops an answer" in result.stderr
    assert result.stderr.count("21 tokens in") == 2, "nothing is answered after /exit"


def test_chat_ends_with_the_input(pair: list[str]) -> None:
    assert ssd("chat", *pair, text="").exit_code == 0


def test_chat_goes_on_after_an_error(pair: list[str]) -> None:
    result = ssd("chat", *pair, "--max-tokens", str(2 * LONG_ANSWER), text="hello\nhello again\n/exit\n")
    assert result.exit_code == 0
    assert result.stderr.count("context window") == 2
    assert "Traceback" not in result.stderr


class Terminal:
    """`ssd` on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            # As a terminal has it, also where the tests were started in the background, with the signal ignored.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execvp(sys.executable, [sys.executable, "-c", "from ssd_engine.cli import main; main()", *arguments])
        self.screen = ""

    def read_until(self, wanted: str) -> None:
        """Wait until `wanted`, a pattern, is among what came since the last call."""
        begin = len(self.screen)
        while not re.search(wanted, self.screen[begin:]):
            ready, _, _ = select.select([self._terminal], [], [], PATIENCE)
            assert ready, f"no {wanted!r} in {self.screen[begin:]!r}"
            self.screen += os.read(self._terminal, 65536).decode(errors="replace")

    def press_until(self, key: str, wanted: str) -> None:
        """Press `key`, again each second as a person would, until `wanted` shows.

        A signal between the prompt and the reading of the line is kept for the next key (CPython's readline).
        """
        begin = len(self.screen)
        for _ in range(PATIENCE):
            self.type(key)
            while select.select([self._terminal], [], [], 1)[0]:
                self.screen += os.read(self._terminal, 65536).decode(errors="replace")
                if re.search(wanted, self.screen[begin:]):
                    return
        raise AssertionError(f"no {wanted!r} in {self.screen[begin:]!r}")

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def exit_code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        os.close(self._terminal)


@pytest.fixture
def terminal(pair: list[str]) -> Iterator[Terminal]:
    started = Terminal("chat", *pair, "--max-tokens", str(LONG_ANSWER))
    yield started
    started.close()


def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(terminal: Terminal) -> None:
    terminal.read_until("> ")
    terminal.type("hello\n")
    terminal.read_until(r"\x1b\[1;4;33m")  # a mismatch under Union: underlined and coloured
    terminal.type("\x03")
    terminal.read_until("stopped(.|\n)*> ")
    terminal.type("\x04")
    assert terminal.exit_code() == 0
    assert "tokens in" not in terminal.screen, "the answer did not run to its end"


def test_ctrl_c_at_the_prompt_tells_how_to_leave(terminal: Terminal) -> None:
    terminal.read_until("> ")
    terminal.press_until("\x03", "/exit or Ctrl-D leaves(.|\n)*> ")
    terminal.type("\x04")
    assert terminal.exit_code() == 0
