"""`ssd chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from ssd_engine.cli import generation_options
from ssd_engine.cli.chat_input import KEYS_HELP, message_reader
from ssd_engine.cli.console import (
    MISMATCH_STYLE,
    UNION_STYLE,
    print_error,
    print_summary,
    shown,
    stderr,
    stdout,
)
from ssd_engine.cli.pair_options import load, takes_pair
from ssd_engine.config import GenerationParams
from ssd_engine.errors import InvalidRequestError, SSDError
from ssd_engine.models.pair import PairSpec
from ssd_engine.rule.scheme import Scheme
from ssd_engine.trace.safety_trace import SafetyTrace

if TYPE_CHECKING:
    from ssd_engine.pair_engine import SSDEngine


@takes_pair()
def chat(
    *,
    pair: PairSpec,
    system: generation_options.SystemOption = None,
    decoding: generation_options.DecodingOption = "ssd",
    max_tokens: generation_options.MaxTokensOption = 1024,
    temperature: generation_options.TemperatureOption = 0.0,
    top_p: generation_options.TopPOption = 1.0,
    top_k: generation_options.TopKOption = None,
    seed: generation_options.SeedOption = None,
    reasoning: generation_options.ReasoningOption = None,
    no_history: Annotated[
        bool, typer.Option("--no-history", help="Keep no file of the messages for later conversations.")
    ] = False,
) -> None:
    """Talk to a pair. Tokens chosen under Union are coloured, mismatches underlined; /help lists the commands."""
    try:
        params = GenerationParams(
            decoding=decoding,
            max_new_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            reasoning=generation_options.reasoning_of(reasoning),
        )
    except InvalidRequestError as error:
        raise typer.BadParameter(str(error)) from error
    with load(pair) as engine:
        ChatSession(engine, params, system).run(message_reader(keeps_history=not no_history))


class ChatSession:
    """One conversation: reads messages, answers them, and keeps what was said."""

    def __init__(self, engine: SSDEngine, params: GenerationParams, system: str | None = None) -> None:
        self._engine = engine
        self._params = params
        self._system = system
        self._messages: list[dict[str, str]] = []
        self._trace: SafetyTrace | None = None
        self._commands: dict[str, tuple[Callable[[str], None], str]] = {
            "/trace": (self._show_trace, "show the match-ratio bins of the last answer"),
            "/reset": (self._reset, "forget the conversation"),
            "/system": (self._set_system, "set the system prompt, or take it away when no text follows"),
            "/help": (self._show_help, "show this list"),
            "/exit": (self._leave, "leave (so does Ctrl-D); Ctrl-C stops an answer"),
        }

    def run(self, read: Callable[[], str]) -> None:
        """Go on until the user leaves; `read` is a `message_reader`."""
        legend = Text.assemble("chosen under ", ("Union", UNION_STYLE), ", ", ("mismatch", MISMATCH_STYLE), "; /help")
        stderr.print(Text.assemble((self._engine.name, "bold"), " (", legend, ")"))
        while True:
            try:
                text = read().strip()
                if text:
                    self._handle(text)
            except KeyboardInterrupt:
                stderr.print("\n/exit or Ctrl-D leaves", style="dim")
            except EOFError:
                return

    def _handle(self, text: str) -> None:
        name, *argument = text.split(maxsplit=1)
        if name in self._commands:
            self._commands[name][0]("".join(argument))
        elif text.startswith("/") and "\n" not in text:
            stderr.print(Text(f"There is no command {name}; /help lists the commands."))
        else:
            self._answer(text)

    def _answer(self, text: str) -> None:
        """Answer a message; the conversation keeps both, or neither when nothing was said."""
        user = {"role": "user", "content": text}
        system = [{"role": "system", "content": self._system}] if self._system else []
        said = ""
        try:
            with contextlib.closing(self._engine.stream([*system, *self._messages, user], self._params)) as pieces:
                for piece in shown(pieces):
                    said += piece.text
                    if piece.result is not None:
                        self._trace = piece.result.trace
            stdout.print()
        except KeyboardInterrupt:
            stdout.print()
            stderr.print("stopped", style="dim")
        except SSDError as error:
            stdout.print()
            print_error(error)
        else:
            if piece.result is not None:
                print_summary(piece.result)
        if said:
            self._messages += [user, {"role": "assistant", "content": said}]

    def _show_trace(self, _: str) -> None:
        if self._trace is None:
            stderr.print("There is no finished answer yet.")
            return
        for alarm in self._trace.alarms:
            said = f"{alarm.signal} {alarm.score:.2f}, threshold {alarm.threshold:.2f}"
            stdout.print(Text(f"Alarm before token {alarm.place}: {said}", UNION_STYLE))
        if not self._trace.bins:
            stderr.print(f"The last answer has no completed bin of {self._trace.bin_size} tokens.")
            return
        table = Table("Bin", "Match ratio", "Threshold", "Scheme", "Next scheme")
        for number, each in enumerate(self._trace.bins, start=1):
            schemes = (
                Text(str(scheme), UNION_STYLE if scheme is Scheme.UNION else "")
                for scheme in (each.scheme, each.next_scheme)
            )
            table.add_row(str(number), f"{each.ratio:.2f}", f"{each.threshold:.2f}", *schemes)
        stdout.print(table)

    def _reset(self, _: str) -> None:
        self._messages.clear()
        self._trace = None
        stderr.print("The conversation begins anew.")

    def _set_system(self, text: str) -> None:
        self._system = text or None
        stderr.print("System prompt set." if text else "System prompt taken away.")

    def _show_help(self, _: str) -> None:
        for name, (_action, meaning) in self._commands.items():
            stderr.print(Text(f"{name:<8} {meaning}"))
        stderr.print(KEYS_HELP)

    def _leave(self, _: str) -> None:
        raise EOFError
