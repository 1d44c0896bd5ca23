"""`ssd chat`, in a pipe and on a terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from command_cases import LONG_ANSWER, Terminal, answer, offline, pair, ssd  # noqa: F401 (fixtures)

from ssd_engine.cli.chat_input import history_file

PROMPT = r"\x1b\[\?2004h(.|\n)*>"
"""The prompt is there, and keys are read: pasted text is told from typed text from now on."""


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
    assert result.stderr.count("21 tokens ·") == 2, "nothing is answered after /exit"


def test_chat_ends_with_the_input(pair: list[str]) -> None:
    assert ssd("chat", *pair, text="").exit_code == 0


def test_chat_goes_on_after_an_error(pair: list[str]) -> None:
    result = ssd("chat", *pair, "--max-tokens", str(2 * LONG_ANSWER), text="hello\nhello again\n/exit\n")
    assert result.exit_code == 0
    assert result.stderr.count("context window") == 2
    assert "Traceback" not in result.stderr


@pytest.fixture
def started(pair: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Terminal]]:
    """Begins a conversation on a terminal."""
    monkeypatch.setenv("PROMPT_TOOLKIT_NO_CPR", "1")  # this terminal answers no questions
    terminals = []

    def start(*options: str) -> Terminal:
        terminals.append(Terminal.of_ssd("chat", *pair, *options))
        terminals[-1].read_until(PROMPT)
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


def kept_messages() -> list[str]:
    """What the file of the history has, message by message."""
    entries = re.split(r"^# .*\n", history_file().read_text(), flags=re.MULTILINE)[1:]
    return ["\n".join(line[1:] for line in entry.splitlines() if line) for entry in entries]


def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(started: Callable[..., Terminal]) -> None:
    terminal = started("--max-tokens", str(LONG_ANSWER))
    terminal.type("hello\r")
    terminal.read_until(r"\x1b\[1;4;33m")  # a mismatch under Union: underlined and coloured
    terminal.type("\x03")
    terminal.read_until(f"stopped(.|\n)*{PROMPT}")
    terminal.type("\x04")
    assert terminal.exit_code() == 0
    assert "drafted accepted" not in terminal.screen, "the answer did not run to its end"


def test_ctrl_c_at_the_prompt_tells_how_to_leave(started: Callable[..., Terminal]) -> None:
    terminal = started()
    terminal.type("never mind\x03")
    terminal.read_until(f"/exit or Ctrl-D leaves(.|\n)*{PROMPT}")
    terminal.type("\x04")
    assert terminal.exit_code() == 0


def test_a_message_of_several_lines_is_one_and_later_conversations_have_it(started: Callable[..., Terminal]) -> None:
    terminal = started("--max-tokens", "4")
    terminal.type("one\x1b\rtwo\\\rthree \x1b[200~four\nfive\n\x1b[201~six\r")
    terminal.read_until(f"drafted accepted(.|\n)*{PROMPT}")
    terminal.type("/exit\r")
    assert terminal.exit_code() == 0
    assert terminal.screen.count("drafted accepted") == 1
    said = ["one\ntwo\nthree four\nfive\nsix", "/exit"]
    assert kept_messages() == said
    assert history_file().stat().st_mode & 0o777 == 0o600

    unkept = started("--max-tokens", "4", "--no-history")
    unkept.type("a secret\r")
    unkept.read_until(f"drafted accepted(.|\n)*{PROMPT}")
    unkept.type("\x04")
    assert unkept.exit_code() == 0
    assert kept_messages() == said

    later = started("--max-tokens", "4")
    later.type("\x1b[A\r")
    assert later.exit_code() == 0, "the last message was to leave"
