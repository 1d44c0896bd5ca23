"""Harmony, the format of gpt-oss: an answer is messages in channels, for reasoning, calls and text.

Source: OpenAI's description of the format (github.com/openai/harmony, docs/format.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from ssd_engine.answers.call_json import call_from, decode_object, invalid_call, is_open_string
from ssd_engine.answers.detokenizer import start_of_partial
from ssd_engine.answers.parsed_text import ParsedText

MARKERS = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>")
"""Tokens that decoding has to leave visible."""
_BODY = "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>")
"""What ends the body of a message."""
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")


class HarmonyParser:
    """Parses one answer while it is written.

    Bodies in the channel `analysis` are reasoning, and those addressed to a function are a call's arguments where tools
    are on offer. All others are text, a blank line between them, and so is what stands before any header.
    """

    def __init__(self, tool_names: Collection[str] = (), *, is_text: bool = False) -> None:
        """Begin an answer; `is_text`: within a body of text, which the prompt has begun."""
        self._has_tools = bool(tool_names)
        self._held = ""
        self._message = _Message("text", "") if is_text else None
        """The message whose body is being read."""
        self._told_kinds: set[str] = set()
        self._is_new = True
        """Whether the message has had no text yet."""
        self._num_read = 0
        self._start = 0
        """Where in the answer's text the message began."""
        self.spans: list[tuple[int, int]] = []
        """Where in the answer's text reasoning stands, its headers included."""

    def feed(self, text: str) -> ParsedText:
        """Takes the next piece of the answer."""
        return self._read(text, final=False)

    def finish(self) -> ParsedText:
        """Ends the answer. A call counts that lacks nothing but the token at its end."""
        return self._read("", final=True)

    def _read(self, text: str, *, final: bool) -> ParsedText:
        self._held += text
        parsed = ParsedText()
        while self._held:
            before = len(self._held)
            read = self._read_header if self._message is None else self._read_body
            parsed += read(final=final)
            if len(self._held) == before:  # more text is wanted
                break
        return parsed

    def _read_header(self, *, final: bool) -> ParsedText:
        at = self._held.find(_BODY)
        if at < 0 and not final:
            return ParsedText()
        self._start = self._num_read
        header = self._take(at + len(_BODY)) if at >= 0 else self._take(len(self._held))
        words = header[: min((i for marker in MARKERS if (i := header.find(marker)) >= 0), default=len(header))]
        is_text = bool(words.strip()) and not (at >= 0 and _RECIPIENT.search(words))
        parsed = self._told("text", words) if is_text else ParsedText()
        self._is_new = True
        if at >= 0:
            self._message = _Message.of(header, has_tools=self._has_tools)
        return parsed

    def _read_body(self, *, final: bool) -> ParsedText:
        assert self._message is not None
        kind, name = self._message.kind, self._message.recipient
        ends = [(at, marker) for marker in _ENDS if (at := self._held.find(marker)) >= 0]
        end, marker = min(ends, default=(len(self._held), ""))
        if not ends and not final:
            return ParsedText() if kind == "call" else self._told(kind, self._take(start_of_partial(self._held, _ENDS)))
        body = self._take(end)
        if marker != "<|start|>":
            self._take(len(marker))
        if kind == "reasoning":
            self.spans.append((self._start, self._num_read))
        self._message = None
        return _call(name, body) if kind == "call" else self._told(kind, body)

    def _told(self, kind: str, text: str) -> ParsedText:
        """Some more of a message's body; what begins a further one of its kind stands behind a blank line."""
        if text and self._is_new:
            if kind in self._told_kinds:
                text = "\n\n" + text
            self._told_kinds.add(kind)
            self._is_new = False
        return ParsedText(reasoning=text) if kind == "reasoning" else ParsedText(text)

    def _take(self, count: int) -> str:
        taken, self._held = self._held[:count], self._held[count:]
        self._num_read += count
        return taken


@dataclass(frozen=True)
class _Message:
    """What the header of a message says of its body."""

    kind: Literal["text", "reasoning", "call"]
    recipient: str
    """The function that is called."""

    @classmethod
    def of(cls, header: str, *, has_tools: bool) -> _Message:
        recipient = _RECIPIENT.search(header)
        if recipient is not None and has_tools:
            return cls("call", recipient[1])
        channel = _CHANNEL.search(header)
        return cls("reasoning" if channel is not None and channel[1] == "analysis" else "text", "")


def _call(name: str, body: str) -> ParsedText:
    """The call of a function, valid or not."""
    try:
        arguments, _ = decode_object(body.strip() or "{}", 0)
    except json.JSONDecodeError as error:
        reason = "the answer ended within this call" if is_open_string(error) else str(error)
        return ParsedText(invalid_tool_calls=(invalid_call(body, reason, name),))
    call = call_from({"name": name, "arguments": arguments})
    assert not isinstance(call, str)  # it has a name and an object
    return ParsedText(tool_calls=(call,))
