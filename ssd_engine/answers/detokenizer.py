"""Token ids -> text while an answer is written: never half a character, never part of a stop string."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_REPLACEMENT = "\ufffd"
_WINDOW = 64
"""Ids that are decoded together at most, a run of byte tokens apart."""
_OVERLAP = 12
"""Ids that the next window takes over: a decoder may treat the first token of a text differently, and a character may
begin up to three tokens before the window."""


class Detokenizer:
    """Turns the ids of one answer into text pieces.

    The pieces joined are what the tokenizer's `decode` gives for all ids that are not hidden, with special tokens kept
    and spaces untouched. Each id costs a decode of at most some dozens of ids, however long the answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, hidden_ids: Collection[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._hidden_ids = frozenset(hidden_ids)
        self._window: list[int] = []
        self._emitted = 0  # characters of the window's text

    def feed(self, token_id: int) -> str:
        """The text that became certain with `token_id`; a character of several tokens comes with its last one."""
        token = None if token_id in self._hidden_ids else self._tokenizer.convert_ids_to_tokens(token_id)
        if token is None:  # hidden, or past the vocabulary's end: adds no text
            return ""
        self._window.append(token_id)
        # One bad byte spoils the whole run of byte tokens that it stands in, so a run is certain when it has ended.
        if _BYTE_TOKEN.fullmatch(token):
            return ""
        text = self._decode(self._window)
        # Of the bytes that are no character, only the last few can still become one; they decode to one U+FFFD.
        certain = len(text) - text.endswith(_REPLACEMENT)
        piece = text[self._emitted : certain]
        self._emitted = max(self._emitted, certain)
        if len(self._window) > _WINDOW:
            self._move_window(text)
        return piece

    def finish(self) -> str:
        """The text that was held back, malformed characters as U+FFFD. Nothing may be fed after it."""
        return self._decode(self._window)[self._emitted :]

    def _move_window(self, text: str) -> None:
        """Forgets ids whose text has been given, and that the text to come no longer depends on."""
        held = len(text) - self._emitted
        self._window = self._window[-_OVERLAP:]
        self._emitted = len(self._decode(self._window)) - held

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


class StopStrings:
    """Finds the first stop string in an answer, across the borders of its pieces.

    First is the one that starts first; of those that start together, the one that is complete first.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False
        """Whether a stop string was seen; the text before it has been given, and no more follows."""

    def feed(self, text: str) -> str:
        """The text that no stop string can later take back."""
        if self.found:
            return ""
        self._held += text
        start = self._first_stop()
        partial = start_of_partial(self._held, self._stops)
        # A longer stop string that began earlier may still be completed.
        if start is not None and start <= partial:
            return self._stop_at(start)
        text, self._held = self._held[:partial], self._held[partial:]
        return text

    def finish(self) -> str:
        """The text that was held back, up to a stop string in it."""
        start = self._first_stop()
        if start is not None:
            return self._stop_at(start)
        text, self._held = self._held, ""
        return text

    def _first_stop(self) -> int | None:
        return min((at for stop in self._stops if (at := self._held.find(stop)) >= 0), default=None)

    def _stop_at(self, start: int) -> str:
        text, self._held = self._held[:start], ""
        self.found = True
        return text


def start_of_partial(text: str, strings: Collection[str]) -> int:
    """Where the longest end of `text` starts that is the unfinished beginning of one of `strings`."""
    longest = max(map(len, strings), default=1) - 1
    starts = range(max(0, len(text) - longest), len(text))
    return next((i for i in starts if any(s.startswith(text[i:]) and s != text[i:] for s in strings)), len(text))
