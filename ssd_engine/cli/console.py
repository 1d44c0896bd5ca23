"""The terminal: answers and results on stdout, all that is said about them on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.status import Status
from rich.text import Text

from ssd_engine.answers.result import GenerationResult, Piece
from ssd_engine.errors import SSDError
from ssd_engine.rule.scheme import Scheme

stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)

UNION_STYLE = "bold yellow"
MISMATCH_STYLE = "underline"

_CONTROL_CHARACTERS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)])
for _kept in "\n\t":
    del _CONTROL_CHARACTERS[ord(_kept)]


def printable(text: str) -> str:
    """Text without the control characters that could steer a terminal; line ends and tabs stay."""
    return text.translate(_CONTROL_CHARACTERS)


def styled(piece: Piece) -> Text:
    """A piece of an answer, tokens chosen under Union coloured and mismatches underlined."""
    if "".join(piece.texts) != piece.text:  # a stop string holds text back: it cannot be told token by token
        return Text(printable(piece.text))
    text = Text()
    tokens = zip(piece.texts, piece.schemes, piece.matched, piece.forced, strict=True)
    for token, scheme, matched, forced in tokens:
        styles = [
            *([UNION_STYLE] if scheme is Scheme.UNION else []),
            *([MISMATCH_STYLE] if scheme is not Scheme.NONE and not (matched or forced) else []),
        ]
        text.append(printable(token), " ".join(styles))
    return text


def starting() -> Status:
    """What is shown while torch and transformers are imported, which takes seconds."""
    return stderr.status("Starting")


def shown(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The same pieces, each added to the answer on stdout; a spinner until the first one comes.

    Reasoning is no part of the answer: it goes to stderr.
    """
    is_reasoning = False
    with ExitStack() as waiting:
        waiting.enter_context(stderr.status("Reading the prompt"))
        for piece in pieces:
            waiting.close()
            if piece.reasoning:
                stderr.print(Text(printable(piece.reasoning), "dim"), end="", soft_wrap=True)
                is_reasoning = True
            if is_reasoning and (piece.text or piece.result is not None):
                stderr.print("\n")
                is_reasoning = False
            # soft_wrap: the terminal breaks the lines, which a piece cannot know about
            stdout.print(styled(piece), end="", soft_wrap=True)
            yield piece


def print_summary(result: GenerationResult) -> None:
    """What happened while the answer was decoded, in a line on stderr."""
    trace, tokens = result.trace, result.usage.completion_tokens
    parts = ["1 token" if tokens == 1 else f"{tokens} tokens"]
    if trace.num_drafted:
        parts += [
            f"{trace.num_accepted} of {trace.num_drafted} drafted accepted",
            f"{trace.tokens_per_round:.1f} a round",
        ]
    parts.append(f"{tokens_per_second(result):.1f} tokens/s")
    if trace.decoding == "ssd":
        parts += [f"Union {trace.union_share:.0%}"] if trace.union_share else []
        parts.append(f"risk {trace.risk}")
    stderr.print(Text(" · ".join(parts), style="dim"), soft_wrap=True)


def tokens_per_second(result: GenerationResult) -> float:
    """Speed of the whole request, reading of the prompt included."""
    return result.usage.completion_tokens / result.timings.total if result.timings.total else 0.0


def print_error(error: Exception) -> None:
    """Say on stderr what went wrong; an error that is not one of ours names its kind."""
    message = str(error) if isinstance(error, SSDError) else f"{type(error).__name__}: {error} (--debug shows where)"
    stderr.print(Text.assemble(("Error: ", "bold red"), printable(message)), soft_wrap=True)


class Stages:
    """Progress bars on stderr, one for each open stage; plain lines where stderr is no terminal."""

    def __init__(self) -> None:
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            _SizeColumn(),
            TimeElapsedColumn(),
            console=stderr,
            transient=True,
            disable=not stderr.is_terminal,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    @contextmanager
    def __call__(self, description: str, size: int | None) -> Iterator[Callable[[int], object]]:
        """A stage, as `ssd_engine.models.progress.Stage` describes it."""
        if not stderr.is_terminal:
            stderr.print(Text(description), soft_wrap=True)
        bar = self._bars.add_task(description, total=size)
        try:
            yield lambda count: self._bars.advance(bar, count)
        finally:
            self._bars.remove_task(bar)


class WorkProgress:
    """A bar on stderr for the step of long work that is under way, as a `Reporter` describes it.

    Where stderr is no terminal, a line at every tenth of a step.
    """

    def __init__(self) -> None:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            _CountColumn(),
            TimeRemainingColumn(),
        )
        self._bars = Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal)
        self._task = self._bars.add_task("Reading what is there", total=None)
        self._told: tuple[object, int] = ("", -1)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def step(self, name: str, done: int, total: int) -> None:
        """So many of so many are done; a `total` of 0: how many there are cannot be known."""
        if done == 0:
            self._bars.remove_task(self._task)
            self._task = self._bars.add_task(name, total=total or None)
        self._bars.update(self._task, description=name, completed=done, total=total or None)
        tenth = (total, 10 * done // total) if total else (name, 0)
        if not stderr.is_terminal and tenth != self._told:
            self._told = tenth
            stderr.print(Text(f"{name}: {done}/{total}" if total else name), soft_wrap=True)

    def note(self, text: str) -> None:
        """Say something beside the bar."""
        stderr.print(Text(text), soft_wrap=True)


class _CountColumn(MofNCompleteColumn):
    """How many are done of how many, where that is known."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else super().render(task)


class _SizeColumn(DownloadColumn):
    """Bytes done and bytes in all, where the size is known."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else super().render(task)
