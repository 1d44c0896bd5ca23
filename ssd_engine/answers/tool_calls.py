"""Tool calls in a model's answer: text -> calls, one format per model family, piece by piece."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any, Protocol

from ssd_engine.answers.brackets import Brackets
from ssd_engine.answers.call_json import call_from, decode_object, invalid_call, is_open_string
from ssd_engine.answers.detokenizer import start_of_partial
from ssd_engine.answers.parsed_text import ParsedText
from ssd_engine.answers.result import InvalidToolCall, ToolCall
from ssd_engine.answers.tool_formats import MARKERS, ToolFormat
from ssd_engine.answers.unmarked_calls import BLANKS, UnmarkedCalls, skip

_FENCE = "```"
_TAGS = ("<tools>", "<tool>", "<tool_calls>", "<functions>", "<function>", "<function_call>", "<function_calls>")
"""What models put around a call that were taught another format, or none."""
_LANGUAGE = re.compile(r"[\w+.-]*")
_LINE_OF_JSON = re.compile(r"(?<=\n)[ \t]*[{\[]")
_SHORT = 256
"""Characters of a buffer that is looked at with every piece."""


class _State(Protocol):
    """Reads on in the buffer: True where something came of it, False where more text is wanted first."""

    def __call__(self, *, final: bool) -> bool: ...


class ToolCallParser:
    """Parses one answer while it is written.

    What the format's own markup encloses is a call, valid or invalid. In every format JSON is a call too that is
    fenced, or in a tag for tools, or that begins a line and ends the answer, when it names an offered tool and gives it
    arguments, an invalid one when it breaks off; else it is plain text.

    Each state looks at what the buffer begins with and waits as long as more text could change its mind, so what comes
    out depends on the answer alone, never on how it was cut into pieces.
    """

    def __init__(self, format: ToolFormat, tool_names: Collection[str]) -> None:
        self._named_calls = format is ToolFormat.MISTRAL
        self._open = MARKERS[format][0]
        self._close = "</tool_call>" if format is ToolFormat.HERMES else ""
        self._borders = (self._open, self._close) if self._close else (self._open,)
        self._unmarked = UnmarkedCalls(tool_names)
        self._markers = (self._open, _FENCE, *(_TAGS if tool_names else ()))
        self._buffer = ""
        self._unseen: list[str] = []
        """Pieces that no state has looked at yet."""
        self._num_unseen = 0
        self._brackets = Brackets()
        self._after_call = False
        self._is_fenced = False
        """Whether a fence is open around the format's own markup."""
        self._state: _State = self._read_start
        self._clear_parsed()

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Where reasoning stands: it reads none."""
        return ()

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
        start = skip(self._buffer, 0, BLANKS)
        if start == len(self._buffer) and not final:
            return False
        if self._buffer.startswith(("{", "["), start):
            parsed, end = self._unmarked.read(self._buffer, start, "", final=final)
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
            if self._is_fenced and self._buffer in ("", "`", "``") and not final:
                return False
            if self._is_fenced:
                self._buffer = self._buffer.removeprefix(_FENCE).lstrip()
                self._is_fenced = False
            self._after_call = not self._buffer
        found = [(at, marker) for marker in self._markers if (at := self._buffer.find(marker)) >= 0]
        line = _LINE_OF_JSON.search(self._buffer) if self._unmarked.tool_names else None
        at, marker = min(found, default=(len(self._buffer), ""))
        if line is not None and line.end() - 1 < at:
            return self._read_line(line.end() - 1, final=final)
        if not marker:
            self._emit(len(self._buffer) if final else self._start_of_marker())
            return False
        at = self._emit_before(at)
        if marker == _FENCE:
            return self._read_fence(at, final=final)
        if marker != self._open:
            inside = at + len(marker)
            return self._read_enclosed(inside, inside, f"</{marker[1:]}", final=final)
        self._buffer = self._buffer[at + len(marker) :]
        self._state = self._read_call
        return True

    def _read_line(self, start: int, *, final: bool) -> bool:
        """A line that begins with JSON, which is a call where it ends the answer."""
        start = self._emit_before(start)
        parsed, end = self._unmarked.read(self._buffer, start, "", final=final)
        if parsed is None or (parsed != ParsedText() and end == len(self._buffer) and not final):
            return False
        if parsed != ParsedText() and end == len(self._buffer):
            self._accept(parsed, end)
        else:
            self._emit(start + 1)
        return True

    def _read_fence(self, fence: int, *, final: bool) -> bool:
        """A fence with a call in it; `fence` is its place in the buffer, behind blanks only."""
        ticks = skip(self._buffer, fence, "`")
        language = _LANGUAGE.match(self._buffer, ticks)
        assert language is not None  # it may be empty
        start = skip(self._buffer, language.end(), BLANKS)
        if start == len(self._buffer) and not final:
            return False
        if (marked := self._marked(start, final=final)) is None:
            return False
        if marked:  # the markup is what counts
            self._is_fenced = True
            self._buffer = self._buffer[start:]
            return True
        return self._read_enclosed(ticks, language.end(), _FENCE, final=final)

    def _marked(self, start: int, *, final: bool) -> bool | None:
        """Whether the format's own markup begins at `start`; None where it may yet."""
        rest = self._buffer[start : start + len(self._open)]
        if rest != self._open and self._open.startswith(rest) and not final:
            return None
        return rest == self._open

    def _read_enclosed(self, opened: int, inside: int, closing: str, *, final: bool) -> bool:
        """JSON between `inside` and `closing`; text up to `opened`, where it is no call."""
        start = skip(self._buffer, inside, BLANKS)
        if start == len(self._buffer) and not final:
            return False
        if self._buffer.startswith(("{", "["), start):
            parsed, end = self._unmarked.read(self._buffer, start, closing, final=final)
            found = self._buffer[end : end + len(closing)]
            is_open = found != closing and closing.startswith(found)
            if parsed is None or (parsed != ParsedText() and is_open and not final):
                return False
            if parsed != ParsedText() and closing.startswith(found):
                self._accept(parsed, end + len(found))
                return True
        self._emit(opened)
        return True

    def _read_call(self, *, final: bool) -> bool:
        """Behind the marker that begins a call, or another call in the same markup."""
        self._buffer = self._buffer.lstrip(BLANKS)
        first = skip(self._buffer, 0, BLANKS + "[")
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
        self._buffer = self._buffer.lstrip(BLANKS + ",;]}")
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
        found = [] if is_open_string(error) else self._borders_from(error.pos)
        if not found and not final:
            return False
        found = found or self._borders_from(0)  # one within a string, perhaps, that nothing has closed
        end = min(found, default=len(self._buffer))
        self._reject(end, str(error), name)
        self._end_markup(end)
        return True

    def _borders_from(self, start: int) -> list[int]:
        """Where markers stand that a call's JSON cannot go past."""
        return [at for marker in self._borders if (at := self._buffer.find(marker, start)) >= 0]

    def _reject(self, end: int, error: str, name: Any) -> None:
        self._invalid.append(invalid_call(self._buffer[:end], error, name))

    def _end_markup(self, end: int) -> None:
        self._buffer = self._buffer[end:].removeprefix(self._close)
        self._after_call = True
        self._state = self._read_text

    def _accept(self, parsed: ParsedText, end: int) -> None:
        self._calls += parsed.tool_calls
        self._invalid += parsed.invalid_tool_calls
        self._buffer = self._buffer[end:]
        self._after_call = True
        self._state = self._read_text

    def _emit_before(self, at: int) -> int:
        """Emit the text before place `at`, without the blanks in between; returns what place that is now."""
        before = len(self._buffer[:at].rstrip())
        self._emit(before)
        return at - before

    def _start_of_marker(self) -> int:
        """Where the text ends that stays text: before a marker's beginning, and the blanks before that."""
        return len(self._buffer[: start_of_partial(self._buffer, self._markers)].rstrip())

    def _emit(self, count: int) -> None:
        self._text.append(self._buffer[:count])
        self._buffer = self._buffer[count:]
