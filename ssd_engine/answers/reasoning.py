"""Reasoning before an answer: text -> reasoning, and what follows it, piece by piece."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from enum import StrEnum

from ssd_engine.answers.detokenizer import start_of_partial
from ssd_engine.answers.parsed_text import ParsedText, TextParser


class ReasoningFormat(StrEnum):
    """How a model family marks its reasoning."""

    THINK = "think"
    """`<think>...</think>` before the answer (Qwen3, DeepSeek-R1, Granite and most others)."""
    MISTRAL = "mistral"
    """`[THINK]...[/THINK]` (Magistral)."""
    HARMONY = "harmony"
    """Messages in the channel `analysis` (gpt-oss)."""

    @property
    def tags(self) -> tuple[str, str]:
        """What opens and what closes it."""
        return _TAGS[self]


_TAGS = {
    ReasoningFormat.THINK: ("<think>", "</think>"),
    ReasoningFormat.MISTRAL: ("[THINK]", "[/THINK]"),
    ReasoningFormat.HARMONY: ("<|channel|>analysis<|message|>", "<|end|>"),
}


def detect_reasoning(chat_template: str | None) -> ReasoningFormat | None:
    """The format that a chat template speaks of; None: its model does not reason apart from its answers."""
    template = chat_template or ""
    if ReasoningFormat.HARMONY.tags[0] in template:
        return ReasoningFormat.HARMONY
    tagged = (ReasoningFormat.THINK, ReasoningFormat.MISTRAL)
    return next((format for format in tagged if format.tags[1] in template), None)


def num_reasoning_tokens(texts: Sequence[str], spans: Sequence[tuple[int, int]]) -> int:
    """How many of an answer's tokens, which add these texts, begin within its reasoning."""
    starts = itertools.accumulate(map(len, texts), initial=0)
    return sum(any(first <= start < last for first, last in spans) for start, _ in zip(starts, texts, strict=False))


class ReasoningParser:
    """Takes the reasoning off the head of an answer, and hands what follows to another parser.

    Reasoning stands at the answer's head alone: tags further on are text, as those of an answer about such tags. What
    never closes is reasoning to the end.
    """

    def __init__(self, format: ReasoningFormat, following: TextParser | None, *, is_open: bool) -> None:
        """Begin an answer.

        Args:
            format: how the model marks its reasoning.
            following: what reads the rest; None: it is text.
            is_open: whether the prompt has opened the reasoning.
        """
        self._opening, self._closing = format.tags
        self._following = following
        self._held = ""
        self._opened_before = is_open
        self._is_open: bool | None = None
        """None: the answer has not begun; False: the reasoning is over, or there is none."""
        self._is_blank = True
        """Whether what was read of the reasoning, or of the text behind it, is nothing but blanks."""
        self._num_characters = 0

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Where in the answer's text the reasoning stands, its tags included."""
        return [(0, self._num_characters)]

    def feed(self, text: str) -> ParsedText:
        """Takes the next piece of the answer."""
        return self._read(text, final=False)

    def finish(self) -> ParsedText:
        """Ends the answer."""
        rest = self._read("", final=True)
        return rest if self._following is None else rest + self._following.finish()

    def _read(self, text: str, *, final: bool) -> ParsedText:
        self._held += text
        if self._is_open is None and not self._begin(final=final):
            return ParsedText()
        if not self._is_open:
            return self._pass_on()
        end = self._held.find(self._closing)
        if end < 0 and not final:
            # Blanks may be the last before the closing tag.
            end = len(self._held[: start_of_partial(self._held, (self._closing,))].rstrip())
            return ParsedText(reasoning=self._take_reasoning(end))
        reasoning = self._take_reasoning(end if end >= 0 else len(self._held)).rstrip()
        if end >= 0:
            self._skip(self._closing)
        self._is_open, self._is_blank = False, True
        return ParsedText(reasoning=reasoning) + self._pass_on()

    def _begin(self, *, final: bool) -> bool:
        """Look whether the answer begins with reasoning; False while more text is wanted."""
        start = self._held.lstrip()
        if start.startswith(self._opening):  # some models open it again
            self._skip(self._held[: len(self._held) - len(start)] + self._opening)
            self._is_open = True
        elif final or not self._opening.startswith(start):
            self._is_open = self._is_blank = self._opened_before
        return self._is_open is not None

    def _take_reasoning(self, end: int) -> str:
        """The reasoning up to `end`, without the blanks before its first word."""
        taken = self._held[:end]
        self._skip(taken)
        if self._is_blank:
            taken = taken.lstrip()
            self._is_blank = not taken
        return taken

    def _pass_on(self) -> ParsedText:
        """What is held is no reasoning; blanks between the closing tag and the first word are left out."""
        rest, self._held = self._held, ""
        if self._is_blank:
            rest = rest.lstrip()
            self._is_blank = not rest
        return ParsedText(rest) if self._following is None else self._following.feed(rest)

    def _skip(self, taken: str) -> None:
        self._held = self._held[len(taken) :]
        self._num_characters += len(taken)
