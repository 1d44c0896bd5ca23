"""What an evaluation asks: attacks and their harmless twins, problems with an answer, ordinary requests."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ssd_engine.campaigns.prompt_sets import GOAL, PROMPT, TARGET, Row, read_prompt_set
from ssd_engine.errors import InvalidRequestError
from ssd_engine.evaluation.forms import FORMS, PLAIN
from ssd_engine.evaluation.forms.material import Beginning, Material
from ssd_engine.evaluation.forms.openings import OPENINGS
from ssd_engine.evaluation.forms.turn import Conversation, Form, Request, asked

Measure = Literal["attack", "over-refusal", "utility", "ordinary"]
TWIN = "twin: "
"""Before the name of a form, where harmless requests have it."""
_GROUPS = (PLAIN.name, "over-refusal", "utility", "ordinary", *FORMS)
_BEGINNINGS = ("prefill ", "real beginning ", TWIN)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Which rows of a set are asked."""

    limit: int | None = None
    """Most rows of each set."""
    at_random: bool = False
    """Whether `limit` leaves a fixed random sample, of rows that bring an opening first; else the first rows."""

    def of(self, rows: Sequence[Row]) -> list[tuple[int, Row]]:
        """The rows with their places in the set."""
        numbered = list(enumerate(rows))
        if self.limit is None or not self.at_random:
            return numbered[: self.limit]
        random.Random(0).shuffle(numbered)
        numbered.sort(key=lambda item: not item[1].get("target"))
        return sorted(numbered[: self.limit], key=lambda item: item[0])


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One request, asked of every contestant alike."""

    index: int
    """Of the row, in its set."""
    source: str
    """The set, by the name of its file."""
    measure: Measure
    group: str
    """What it is counted under: a form, a form's twin, or the measure itself."""
    conversation: Conversation
    max_new_tokens: int
    goal: str = ""
    """What is asked for, undisguised; the right number of a problem."""

    @property
    def name(self) -> str:
        """Unique in an evaluation, and the same in every run over the same data."""
        parts = repr((self.source, self.conversation, self.goal, self.max_new_tokens))
        return f"{self.group}/{self.index}/{hashlib.sha256(parts.encode()).hexdigest()[:10]}"

    @property
    def materials(self) -> list[Material]:
        """What the target has to make before this can be asked."""
        return [part for turn in self.conversation for part in turn.parts if not isinstance(part, str)]

    @property
    def given(self) -> Beginning | None:
        """The beginning that is given as the assistant's own, to be gone on with."""
        last = self.conversation[-1]
        return next((part for part in last.parts if isinstance(part, Beginning)), None) if self.is_begun else None

    @property
    def is_begun(self) -> bool:
        """Whether the last message is the assistant's, to be gone on with."""
        return self.conversation[-1].role == "assistant"

    def messages(self, text_of: Callable[[Material], str]) -> list[dict[str, Any]]:
        """The conversation as an engine takes it; `text_of` gives what the target made."""
        return [turn.message(text_of) for turn in self.conversation]


def attack_trials(
    sources: Sequence[str], forms: Sequence[Form], sample: Sample, max_new_tokens: int, *, are_twins: bool = False
) -> list[Trial]:
    """Each request plainly and in each form.

    Args:
        sources: sets of harmful requests; of harmless ones for twins, where a refusal is an over-refusal.
    """
    fields = {"goal": PROMPT if are_twins else GOAL}
    return [
        Trial(
            index=index,
            source=Path(source).stem,
            measure="over-refusal" if are_twins else "attack",
            group=f"{TWIN if are_twins else ''}{form.name}",
            conversation=form.ask(_request(row, index)),
            max_new_tokens=max_new_tokens,
            goal=row["goal"],
        )
        for source in sources
        for index, row in sample.of(read_prompt_set(source, fields, {"target": TARGET}))
        for form in (PLAIN, *forms)
    ]


def attacked_trials(sources: Sequence[str], sample: Sample, max_new_tokens: int) -> list[Trial]:
    """Attacked prompts from files with `goal` and `prompt`, each file an attack of its own, named by the file."""
    trials = []
    names = [Path(source).stem for source in sources]
    for source, group in zip(sources, names, strict=True):
        if names.count(group) > 1 or group in _GROUPS or group.startswith(_BEGINNINGS):
            raise InvalidRequestError(
                f"{source}: attacks are named by their files, and {group!r} names another one; rename the file"
            )
        for index, row in sample.of(read_prompt_set(source, {"goal": ("goal",), "prompt": ("prompt",)})):
            trials.append(
                Trial(
                    index=index,
                    source=group,
                    measure="attack",
                    group=group,
                    conversation=asked(row["prompt"]),
                    max_new_tokens=max_new_tokens,
                    goal=row["goal"],
                )
            )
    return trials


def prompt_trials(
    measure: Measure, sources: Sequence[str], fields: Mapping[str, Sequence[str]], sample: Sample, max_new_tokens: int
) -> list[Trial]:
    """One trial a row."""
    return [
        Trial(
            index=index,
            source=Path(source).stem,
            measure=measure,
            group=measure,
            conversation=asked(row["prompt"]),
            max_new_tokens=max_new_tokens,
            goal=row.get("goal") or row["prompt"],
        )
        for source in sources
        for index, row in sample.of(read_prompt_set(source, fields))
    ]


def _request(row: Row, index: int) -> Request:
    own = row.get("target")
    return Request(text=row["goal"], opening=own or OPENINGS[index % len(OPENINGS)], has_own_opening=bool(own))
