"""Tool calls in a model's answer: text -> calls, one format per model family, piece by piece."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

from ssd_engine.answers.brackets import Brackets
from ssd_engine.answers.call_json import call_from, decode, decode_object, invalid_call, is_open_string, may_go_on
from ssd_engine.answers.detokenizer import start_of_partial
from ssd_engine.answers.result import InvalidToolCall, ToolCall
from ssd_engine.answers.tool_formats import MARKERS, ToolFormat

_FENCE = "```"
_PARTS_OF_FENCE = ("", "`", "``")
_BLANKS = " \t\r\n"
_BLANK = r"[ \t\r\n]*"
_HEAD = re.compile(
    _BLANK.join(["", r"(?:\[[ \t\r\n]*)*\{", '"name"', ":", r'"([^"\\]+)"', ",", '"(?:arguments|parameters)"', ":"])
)
"""What a call without markup begins with."""
_SHORT = 256
"""Characters of a buffer that is looked at with every piece."""


@dataclass(frozen=True)
class ParsedText:
    """What became certain: ordinary text, and calls that are complete."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    invalid_tool_calls: tuple[InvalidToolCall, ...] = ()

    def __add__(self, later: ParsedText) -> ParsedText:
        return ParsedText(
            self.text + later.text,
            self.tool_calls + later.tool_calls,
            self.invalid_tool_calls + later.invalid_tool_calls,
        )


class _State(Protocol):
    """Reads on in the buffer: True where something came of it, False where more text is wanted first."""

    def __call__(self, *, final: bool) -> bool: ...


class ToolCallParser:
    """Parses one answer while it is written.

    What the format's own markup encloses is a call, valid or invalid. In every format fenced JSON, and bare JSON that
    is the whole answer, are calls too when they name an offered tool and give it arguments, invalid ones when they
    break off; else they are plain text.

    Each state looks at what the buffer begins with and waits as long as more text could change its mind, so what comes
    out depends on the answer alone, never on how it was cut into pieces.
    """

    def __init__(self, format: ToolFormat, tool_names: Collection[str]) -> None:
        self._named_calls = format is ToolFormat.MISTRAL
        self._open = MARKERS[format][0]
        self._close = "</tool_call>" if format is ToolFormat.HERMES else ""
        self._borders = (self._open, self._close) if self._close else (self._open,)
        self._tool_names = frozenset(tool_names)
        self._buffer = ""
        self._unseen: list[str] = []
        """Pieces that no state has looked at yet."""
        self._num_unseen = 0
        self._brackets = Brackets()
        self._after_call = False
        self._state: _State = self._read_start
        self._clear_parsed()

    def feed(self, text: str) -> ParsedText:
        """Takes the next piece of the answer; what may still belong to a call is held back."""
        self._unseen.append(text)
        self._num_unseen += len(text)
        has_closed = self._brackets.feed(text)
        # A state looks at the whole buffer. That it does so again only where a bracket has closed, or once the buffer
        # has grown by a part of its length, keeps the time linear in the length of a call; it changes no outcome.
        if has_closed or len(self._buffer) + self._num_unseen <= _SHORT or self._num_unseen * 4 >= len(self._buffer):
            return self._advance(final=False)
        return ParsedText()

    def finish(self) -> ParsedText:
        """Ends the answer. A call that lacks only its closing marker counts; one that is no JSON is invalid."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> ParsedText:
        held = len(self._buffer) + self._num_unseen
        self._buffer += "".join(self._unseen)
        self._unseen, self._num_unseen = [], 0
        while self._state(final=final):
            pass
        if len(self._buffer) < held:
            self._brackets = Brackets()
            self._brackets.feed(self._buffer)
        parsed = ParsedText("".join(self._text), tuple(self._calls), tuple(self._invalid))
        self._clear_parsed()
        return parsed

    def _clear_parsed(self) -> None:
        self._text: list[str] = []
        self._calls: list[ToolCall] = []
        self._invalid: list[InvalidToolCall] = []

    # States: each takes something off the buffer or hands over to another state (True), or waits for more text (False).

    def _read_start(self, *, final: bool) -> bool:
        """The answer has not begun, or it begins with JSON that may be all of it."""
        start = _skip(self._buffer, 0, _BLANKS)
        if start == len(self._buffer) and not final:
            return False
        if self._buffer.startswith(("{", "["), start):
            parsed, end = self._read_implicit(start, "", final=final)
            if parsed is None or (parsed != ParsedText() and end == len(self._buffer) and not final):
                return False
            if parsed != ParsedText() and end == len(self._buffer):
                self._accept(parsed, end)
                return True
        self._state = self._read_text
        return True

    def _read_text(self, *, final: bool) -> bool:
        """Ordinary text, up to where a call may begin."""
        if self._after_call:
            self._buffer = self._buffer.lstrip()
            self._after_call = not self._buffer
        found = [(at, marker) for marker in (self._open, _FENCE) if (at := self._buffer.find(marker)) >= 0]
        if not found:
            self._emit(len(self._buffer) if final else self._start_of_marker())
            return False
        at, marker = min(found)
        before = len(self._buffer[:at].rstrip())
        self._emit(before)
        at -= before
        if marker == _FENCE:
            return self._read_fence(at, final=final)
        self._buffer = self._buffer[at + len(marker) :]
        self._state = self._read_call
        return True

    def _read_fence(self, fence: int, *, final: bool) -> bool:
        """A fence with JSON in it; `fence` is its place in the buffer, behind blanks only."""
        inside = _skip(self._buffer, fence, "`")
        language = self._buffer[inside : inside + 4].lower()
        if "json".startswith(language) and len(language) < 4 and not final:
            return False
        start = _skip(self._buffer, inside + 4 if language == "json" else inside, _BLANKS)
        if start == len(self._buffer) and not final:
            return False
        if self._buffer.startswith(("{", "["), start):
            parsed, end = self._read_implicit(start, _FENCE, final=final)
            closing = self._buffer[end : end + len(_FENCE)]
            if parsed is None or (parsed != ParsedText() and closing in _PARTS_OF_FENCE and not final):
                return False
            if parsed != ParsedText() and _FENCE.startswith(closing):
                self._accept(parsed, end + len(closing))
                return True
        self._emit(inside)
        return True

    def _read_call(self, *, final: bool) -> bool:
        """Behind the marker that begins a call, or another call in the same markup."""
        self._buffer = self._buffer.lstrip(_BLANKS)
        first = _skip(self._buffer, 0, _BLANKS + "[")
        if self._buffer.startswith("{", first):
            self._buffer = self._buffer[first:]
        name, start = self._read_name() if self._named_calls else (None, 0)
        try:
            value, end = decode_object(self._buffer, start)
        except json.JSONDecodeError as error:
            return self._read_broken_call(error, name, final=final)
        call = call_from(value if name is None else {"name": name, "arguments": value})
        if isinstance(call, str):
            self._reject(end, call, value.get("name") if name is None else name)
        else:
            self._calls.append(call)
        self._buffer = self._buffer[end:]
        self._state = self._read_rest_of_markup
        return True

    def _read_rest_of_markup(self, *, final: bool) -> bool:
        """Behind a call: another one, or the closing marker. Stray separators and brackets are common there."""
        self._buffer = self._buffer.lstrip(_BLANKS + ",;]}")
        if self._buffer.startswith("{"):
            self._state = self._read_call
            return True
        if not self._buffer or (self._buffer != self._close and self._close.startswith(self._buffer)):
            if final:
                self._buffer = ""
            return False
        self._end_markup(0)
        return True

    # What the states are made of.

    def _read_name(self) -> tuple[str | None, int]:
        """The name in `name[ARGS]{...}` and where the arguments begin; (None, 0) where there is no such name."""
        following = self._buffer.find(self._open)
        start = self._buffer.find("{", 0, following if following >= 0 else None)
        if start <= 0:
            return None, 0
        return self._buffer[:start].partition("[")[0].strip(), start

    def _read_broken_call(self, error: json.JSONDecodeError, name: str | None, *, final: bool) -> bool:
        """Waits for the rest of the JSON, or for the marker behind JSON that no more text can mend."""
        if not final and is_open_string(error):
            return False
        searched = 0 if final else error.pos
        found = [at for marker in self._borders if (at := self._buffer.find(marker, searched)) >= 0]
        if not found and not final:
            return False
        end = min(found, default=len(self._buffer))
        self._reject(end, str(error), name)
        self._end_markup(end)
        return True

    def _reject(self, end: int, error: str, name: Any) -> None:
        self._invalid.append(invalid_call(self._buffer[:end], error, name))

    def _end_markup(self, end: int) -> None:
        self._buffer = self._buffer[end:].removeprefix(self._close)
        self._after_call = True
        self._state = self._read_text

    def _read_implicit(self, start: int, closing: str, *, final: bool) -> tuple[ParsedText | None, int]:
        """The calls without markup in the JSON at `start`, and where they end; nothing for other JSON, None to wait.

        JSON that breaks off is a call, an invalid one, where it begins like a call or where whole calls precede it.
        """
        calls: tuple[ToolCall, ...] = ()
        end = start
        if not self._tool_names:
            return ParsedText(), end
        while self._buffer.startswith(("{", "["), end):
            try:
                value, value_end = decode(self._buffer, end)
            except json.JSONDecodeError as error:
                if not final and may_go_on(error):
                    return None, start
                return self._read_broken_implicit(start, end, calls, error, closing, final=final)
            found = [self._implicit_call(item) for item in (value if isinstance(value, list) else [value])]
            if not found or not all(found):
                return ParsedText(), start
            calls += tuple(call for call in found if call is not None)
            end = _skip(self._buffer, value_end, _BLANKS + ";")
        return ParsedText("", calls), end

    def _read_broken_implicit(
        self,
        start: int,
        end: int,
        calls: tuple[ToolCall, ...],
        error: json.JSONDecodeError,
        closing: str,
        *,
        final: bool,
    ) -> tuple[ParsedText | None, int]:
        """`_read_implicit` where the JSON at `end`, behind whole `calls`, breaks off."""
        head = _HEAD.match(self._buffer, end)
        name = head[1] if head and head[1] in self._tool_names else None
        if not calls and name is None:
            return ParsedText(), start
        stop = self._buffer.find(closing, end) if closing else -1
        if stop < 0 and not final:
            return None, start
        broken = self._buffer[end : stop if stop >= 0 else None]
        is_cut = is_open_string(error) or error.pos >= end + len(broken.rstrip())
        reason = "the answer ended within this call" if is_cut else str(error)
        return ParsedText("", calls, (invalid_call(broken, reason, name),)), end + len(broken)

    def _implicit_call(self, value: Any) -> ToolCall | None:
        """`value` as a call of an offered tool, if it is one."""
        if not isinstance(value, dict) or not {"arguments", "parameters"} & value.keys():
            return None
        call = call_from(value)
        return call if isinstance(call, ToolCall) and call.name in self._tool_names else None

    def _accept(self, parsed: ParsedText, end: int) -> None:
        self._calls += parsed.tool_calls
        self._invalid += parsed.invalid_tool_calls
        self._buffer = self._buffer[end:]
        self._after_call = True
        self._state = self._read_text

    def _start_of_marker(self) -> int:
        """Where the text ends that stays text: before a marker's beginning, and the blanks before that."""
        return len(self._buffer[: start_of_partial(self._buffer, (self._open, _FENCE))].rstrip())

    def _emit(self, count: int) -> None:
        self._text.append(self._buffer[:count])
        self._buffer = self._buffer[count:]


def _skip(text: str, start: int, characters: str) -> int:
    """The first place from `start` on that holds none of `characters`."""
    return len(text) - len(text[start:].lstrip(characters))
