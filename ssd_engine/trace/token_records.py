"""What a server's stream says of each token, so that its client makes the answer that an engine of its own would."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ssd_engine.rule.choice import Choice
from ssd_engine.rule.scheme import Scheme
from ssd_engine.rule.signals import Look
from ssd_engine.trace.codes import TraceReader, begins_round


def record(choice: Choice, text: str, decode: Callable[[int], str]) -> dict[str, Any]:
    """A token as JSON: `text` is what it adds to the answer; log-probabilities and signals where `choice` has them."""
    entry: dict[str, Any] = {"id": choice.token_id, "text": text}
    if choice.look is not None:
        entry |= {"scores": dict(choice.look.scores), "alarms": list(choice.look.raised)}
    if choice.logprob is not None:
        entry |= {
            "token": decode(choice.token_id),
            "logprob": choice.logprob,
            "top": [(token_id, decode(token_id), logprob) for token_id, logprob in choice.top_logprobs],
        }
    return entry


def beginning_record(looks: Sequence[Look]) -> list[dict[str, Any]]:
    """What signals said over a given beginning, as JSON."""
    return [{"scores": dict(look.scores), "alarms": list(look.raised)} for look in looks]


def beginning_of_record(entries: Sequence[Mapping[str, Any]]) -> list[Look]:
    """What `beginning_record` told."""
    return [Look(entry["scores"], tuple(entry["alarms"])) for entry in entries]


class TokenReader:
    """Reads the records of one answer; a `TextSource` of what they told."""

    def __init__(self, reader: TraceReader | None) -> None:
        """`reader` reads the codes; None: the tokens come from a lossless rule, which has none."""
        self._reader = reader
        self._texts: deque[str] = deque()
        self._tokens: dict[int, str] = {}
        self.rest = ""
        """What the answer held back at its end."""

    def rounds(self, records: Sequence[Mapping[str, Any]], codes: str) -> list[list[Choice]]:
        """The rounds that an event's records and trace codes tell of.

        Raises:
            ValueError: there are not as many codes as records.
        """
        if self._reader is None:
            # The rule says only how many were accepted: all but the last one.
            choices = [
                Choice(entry["id"], matched=place < len(records) - 1, scheme=Scheme.NONE, bin=None)
                for place, entry in enumerate(records)
            ]
            starts = [0] if choices else []
        else:
            if len(codes) != len(records):
                raise ValueError(f"{len(records)} tokens came with {len(codes)} trace codes")
            numbers = [int(code, 16) for code in codes]
            choices = [
                self._reader.read_code(entry["id"], n, _look_of(entry))
                for entry, n in zip(records, numbers, strict=True)
            ]
            starts = [place for place, number in enumerate(numbers) if not place or begins_round(number)]
        choices = [self._with_logprob(choice, entry) for choice, entry in zip(choices, records, strict=True)]
        self._texts += [str(entry["text"]) for entry in records]
        return [choices[start:end] for start, end in zip(starts, [*starts[1:], len(choices)], strict=True)]

    def feed(self, token_id: int) -> str:
        """What the next token adds to the text."""
        return self._texts.popleft()

    def finish(self) -> str:
        """What was held back; nothing where the answer ends before the last token that was told of."""
        return "" if self._texts else self.rest

    def decode(self, token_id: int) -> str:
        """What a token is by itself, of those with log-probabilities."""
        return self._tokens[token_id]

    def _with_logprob(self, choice: Choice, entry: Mapping[str, Any]) -> Choice:
        if "logprob" not in entry:
            return choice
        self._tokens[choice.token_id] = entry["token"]
        self._tokens |= {token_id: token for token_id, token, _ in entry["top"]}
        top = tuple((token_id, logprob) for token_id, _, logprob in entry["top"])
        return replace(choice, logprob=entry["logprob"], top_logprobs=top)


def _look_of(entry: Mapping[str, Any]) -> Look | None:
    return Look(entry["scores"], tuple(entry["alarms"])) if "scores" in entry else None
