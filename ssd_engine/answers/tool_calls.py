"""Tool calls in a model's answer: text -> calls, one format per model family, piece by piece."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from ssd_engine.answers.blanks import BLANKS, skip
from ssd_engine.answers.brackets import Brackets
from ssd_engine.answers.call_json import invalid_call
from ssd_engine.answers.detokenizer import start_of_partial
from ssd_engine.answers.formats.body import BrokenCallError, Schemas
from ssd_engine.answers.parsed_text import ParsedText
from ssd_engine.answers.result import InvalidToolCall, ToolCall
from ssd_engine.answers.tool_formats import FORMATS, ToolFormat
from ssd_engine.answers.unmarked_calls import Unmarked, UnmarkedCalls
from ssd_engine.answers.unmarked_python import UnmarkedPython

_FENCE = "```"
_TAGS = ("<tools>", "<tool>", "<tool_calls>", "<functions>", "<function>", "<function_call>", "<function_calls>")
"""What models put around a call that were taught another format, or none."""
_LANGUAGE = re.compile(r"[\w+.-]*")
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

    def __init__(self, format: ToolFormat, tools: Collection[str] | Schemas) -> None:
        """`tools`: the names of the offered tools; their arguments' JSON Schemas too, where these are known.

        Formats that write all values as text have to be told by a schema which are numbers.
        """
        self._format = FORMATS[format]
        self._schemas: Schemas = tools if isinstance(tools, Mapping) else {}
        python: tuple[Unmarked, ...] = (UnmarkedPython(tools),) if self._format.reads_python else ()
        self._unmarked: tuple[Unmarked, ...] = (*python, UnmarkedCalls(tools)) if tools else ()
        self._openings = self._format.openings
        self._heads = self._format.heads(tools)
        self._enclosures = {tag: f"</{tag[1:]}" for tag in _TAGS} | dict.fromkeys(self._format.words, "")
        self._markers = (*self._openings, *self._heads, _FENCE, *(self._enclosures if tools else ()))
        self._buffer = ""
        self._unseen: list[str] = []
        """Pieces that no state has looked at yet."""
        self._num_unseen = 0
        self._brackets = Brackets(self._format.closings)
        self._after_call = False
        self._is_fenced = False
        """Whether a fence is open around the format's own markup."""
        self._closings: tuple[str, ...] = ()
        """Closing markers that may still come."""
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
        # A state looks at the whole buffer. That it does so again only where a bracket has closed, at a closing marker,
        # or once the buffer has grown by a part of its length, keeps the time linear in the length of a call; it
        # changes no outcome.
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
            self._brackets = Brackets(self._format.closings)
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
        parsed, end = self._read_unmarked(start, "", final=final)
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
        at, marker = self._first_marker(final=final)
        line = self._first_line()
        if line is not None and line < at:
            return self._read_line(line, final=final)
        if not marker:
            self._emit(at)
            return False
        at = self._emit_before(at)
        if marker == _FENCE:
            return self._read_fence(at, final=final)
        if marker in self._enclosures:
            inside = at + len(marker)
            return self._read_enclosed(inside, inside, self._enclosures[marker], final=final)
        self._buffer = self._buffer[at + (len(marker) if marker in self._openings else 0) :]
        self._state = self._read_call
        return True

    def _read_line(self, start: int, *, final: bool) -> bool:
        """A line that begins like a call, which it is where it ends the answer."""
        start = self._emit_before(start)
        parsed, end = self._read_unmarked(start, "", final=final)
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
        rest = self._buffer[start:]
        if not final and any(own.startswith(rest) and own != rest for own in (*self._openings, *self._heads)):
            return None
        return rest.startswith((*self._openings, *self._heads))

    def _read_enclosed(self, opened: int, inside: int, closing: str, *, final: bool) -> bool:
        """Calls between `inside` and `closing`; text up to `opened`, where there are none."""
        start = skip(self._buffer, inside, BLANKS)
        if start == len(self._buffer) and not final:
            return False
        parsed, end = self._read_unmarked(start, closing, final=final)
        found = self._buffer[end : end + len(closing)]
        is_open = (
            closing.startswith(found) and end + len(found) == len(self._buffer) and (found != closing or not found)
        )
        if parsed is None or (parsed != ParsedText() and is_open and not final):
            return False
        if parsed != ParsedText() and closing.startswith(found):
            self._accept(parsed, end + len(found))
        else:
            self._emit(opened)
        return True

    def _read_call(self, *, final: bool) -> bool:
        """Behind the marker that begins a call, or another call in the same markup."""
        body, inner = self._format.body, self._format.inner
        self._buffer = self._buffer.lstrip(BLANKS)
        while inner and self._buffer.startswith(inner):
            self._buffer = self._buffer.removeprefix(inner).lstrip(BLANKS)
        first = skip(self._buffer, 0, BLANKS + "[")
        if body.begins(self._buffer, first):
            self._buffer = self._buffer[first:]
        try:
            read = body.read(self._buffer, self._schemas)
        except BrokenCallError as broken:
            return self._read_broken_call(broken, final=final)
        if read.call is None:
            self._reject(read.end, read.error, read.name)
        else:
            self._calls.append(read.call)
        self._buffer = self._buffer[read.end :]
        self._state = self._read_rest_of_markup
        return True

    def _read_rest_of_markup(self, *, final: bool) -> bool:
        """Behind a call: another one, or the closing marker. Stray separators and brackets are common there."""
        self._buffer = self._buffer.lstrip(self._format.separators)
        begins = self._format.body.begins(self._buffer, 0)
        if begins:
            self._state = self._read_call
            return True
        if not final and begins is None:
            return False
        self._closings = self._format.closings
        self._state = self._read_closings
        return True

    def _read_closings(self, *, final: bool) -> bool:
        """Behind the last call of a markup."""
        behind = self._buffer.lstrip(BLANKS)
        place, closing = next(
            ((place, each) for place, each in enumerate(self._closings) if behind.startswith(each)), (0, "")
        )
        # An opening may begin as a closing does.
        openings = [opening for opening in self._openings if closing and opening.startswith(closing)]
        if not final and any(opening.startswith(behind) for opening in openings):
            return False
        if closing and not behind.startswith(tuple(openings)):
            self._buffer = behind.removeprefix(closing)
            self._closings = self._closings[place + 1 :]
            return True
        if any(closing.startswith(behind) for closing in self._closings):
            if final:
                self._buffer = ""
            return False
        self._after_call = True
        self._state = self._read_text
        return True

    # What the states are made of.

    def _first_marker(self, *, final: bool) -> tuple[int, str]:
        """Where a call may begin, and the longest marker there; "" behind what stays text."""
        found = [(at, -len(marker), marker) for marker in self._markers if (at := self._buffer.find(marker)) >= 0]
        at, _, marker = min(found, default=(len(self._buffer), 0, ""))
        if marker and not final and any(each.startswith(self._buffer[at:]) for each in self._markers if each != marker):
            marker = ""  # a longer one may stand there
        return (at, marker) if marker or final else (min(at, self._start_of_marker()), "")

    def _first_line(self) -> int | None:
        """Where the first line begins that begins like a call."""
        found = [match.end() for each in self._unmarked if (match := each.line.search(self._buffer))]
        return min(found, default=None)

    def _read_unmarked(self, start: int, closing: str, *, final: bool) -> tuple[ParsedText | None, int]:
        """`Unmarked.read` in the notation that begins at `start`; nothing where none does."""
        for notation in self._unmarked:
            begins = notation.begins(self._buffer, start)
            if begins:
                return notation.read(self._buffer, start, closing, final=final)
            if begins is None and not final:
                return None, start
        return ParsedText(), start

    def _read_broken_call(self, broken: BrokenCallError, *, final: bool) -> bool:
        """Waits for the rest of the call, or for the marker behind what no more text can mend."""
        if not final and broken.is_open:
            return False
        found = [] if broken.is_open else self._borders_from(broken.at)
        if not found and not final:
            return False
        found = found or self._borders_from(0)  # one within a string, perhaps, that nothing has closed
        end = min(found, default=len(self._buffer))
        self._reject(end, str(broken), broken.name)
        self._buffer = self._buffer[end:]
        self._closings = self._format.closings
        self._state = self._read_closings
        return True

    def _borders_from(self, start: int) -> list[int]:
        """Where markers stand that a call cannot go past."""
        return [at for marker in self._format.borders if (at := self._buffer.find(marker, start)) >= 0]

    def _reject(self, end: int, error: str, name: Any) -> None:
        self._invalid.append(invalid_call(self._buffer[:end], error, name))

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
        start = start_of_partial(self._buffer, self._markers)
        start = min([start, *(each.partial_line(self._buffer) for each in self._unmarked)])
        return len(self._buffer[:start].rstrip())

    def _emit(self, count: int) -> None:
        self._text.append(self._buffer[:count])
        self._buffer = self._buffer[count:]
