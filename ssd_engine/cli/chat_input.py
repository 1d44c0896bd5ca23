"""Where a conversation's messages come from: edited lines on a terminal, plain lines in a pipe."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_state_path
from rich.text import Text

from ssd_engine.cli.console import stderr

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

KEYS_HELP = "Enter sends; Alt-Enter, or a backslash at the end, begins a new line; pasted lines stay one message"
_PROMPT = "\n> "
_CONTINUED = "  "


def message_reader(*, keeps_history: bool) -> Callable[[], str]:
    """What reads the next message; it raises `EOFError` at the end of the input, `KeyboardInterrupt` at Ctrl-C.

    Args:
        keeps_history: whether messages are kept in `history_file` for later conversations; on a terminal only.
    """
    if not sys.stdin.isatty():
        return lambda: input(_PROMPT)
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output import create_output

    session: PromptSession[str] = PromptSession(
        multiline=True,
        prompt_continuation=_CONTINUED,
        key_bindings=_key_bindings(),
        history=_history(keeps_history=keeps_history),
        output=create_output(always_prefer_tty=True),  # answers may go to a file
    )
    return lambda: session.prompt(_PROMPT)


def history_file() -> Path:
    """Where messages are kept, in the platform's folder for an application's state."""
    return user_state_path("ssd-integrations", appauthor=False) / "chat-history"


def _history(*, keeps_history: bool) -> History:
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class PrivateHistory(FileHistory):
        """A file of messages; one that cannot be kept (a full disk) does not end the conversation."""

        def store_string(self, string: str) -> None:
            with contextlib.suppress(OSError, UnicodeEncodeError):
                super().store_string(string)

    path = history_file()
    try:
        if keeps_history:
            _make_private(path)
            return PrivateHistory(str(path))
    except OSError as error:
        stderr.print(Text(f"No history is kept: {path}: {error.strerror}", style="dim"), soft_wrap=True)
    return InMemoryHistory()


def _make_private(path: Path) -> None:
    """Make the file where there is none, and let nobody but its owner read it: it holds what was said."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    path.chmod(0o600)


def _key_bindings() -> KeyBindings:
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import has_focus
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()
    in_message = has_focus(DEFAULT_BUFFER)  # not while the history is searched

    @bindings.add("enter", filter=in_message)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        document = buffer.document
        if document.is_cursor_at_the_end and document.text.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=in_message)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return bindings
