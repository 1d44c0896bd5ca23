"""What an evaluation asks: attacks, harmless requests that look harmful, problems with an answer, ordinary requests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ssd_engine.errors import InvalidRequestError
from ssd_engine.evaluation.attacks import TEMPLATES
from ssd_engine.prompt_sets import Row, read_prompt_set

Measure = Literal["attack", "over-refusal", "utility", "ordinary"]


_GROUPS = ("plain", "over-refusal", "utility", "ordinary", *TEMPLATES)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One request, asked of every decoding alike."""

    index: int
    """Of the row, among all of its measure."""
    measure: Measure
    group: str
    """What it is counted under: an attack, or the measure itself."""
    prompt: str
    max_new_tokens: int
    goal: str = ""
    """What an attack is after, undisguised; the right number of a problem."""
    opening: str = ""
    """A beginning of a compliant answer, as far as the set gives it."""
    prefill: int = 0
    """Tokens of the answer that are given: the opening's, and the target's own where that is short."""

    @property
    def name(self) -> str:
        """Unique in an evaluation, and the same in every run over the same data."""
        asked = repr((self.prompt, self.goal, self.opening, self.max_new_tokens))
        return f"{self.group}/{self.index}/{hashlib.sha256(asked.encode()).hexdigest()[:10]}"


def attack_trials(
    sources: Sequence[str], prefills: Sequence[int], templates: Sequence[str], limit: int | None, max_new_tokens: int
) -> list[Trial]:
    """Each harmful request plainly, with each length of prefill and in each template."""
    trials = []
    for index, row in enumerate(_rows(sources, {"goal": ("goal", "prompt", "Behavior", "behavior")}, limit)):
        goal = row["goal"]
        own = row.get("target")
        opening = own if isinstance(own, str) and own.strip() else "Sure, here is"
        asked = [("plain", goal, 0), *((f"prefill {length}", goal, length) for length in prefills)]
        asked += [(name, TEMPLATES[name].format(request=goal), 0) for name in templates]
        trials += [
            Trial(
                index=index,
                measure="attack",
                group=group,
                prompt=prompt,
                max_new_tokens=max_new_tokens,
                goal=goal,
                opening=opening,
                prefill=prefill,
            )
            for group, prompt, prefill in asked
        ]
    return trials


def attacked_trials(sources: Sequence[str], limit: int | None, max_new_tokens: int) -> list[Trial]:
    """Attacked prompts from files with `goal` and `prompt`, each file an attack of its own, named by the file."""
    trials = []
    names = [Path(source).stem for source in sources]
    for source, group in zip(sources, names, strict=True):
        if names.count(group) > 1 or group in _GROUPS or group.startswith("prefill "):
            raise InvalidRequestError(
                f"{source}: attacks are named by their files, and {group!r} names another one; rename the file"
            )
        for index, row in enumerate(_rows([source], {"goal": ("goal",), "prompt": ("prompt",)}, limit)):
            trials.append(
                Trial(
                    index=index,
                    measure="attack",
                    group=group,
                    prompt=row["prompt"],
                    max_new_tokens=max_new_tokens,
                    goal=row["goal"],
                )
            )
    return trials


def prompt_trials(
    measure: Measure,
    sources: Sequence[str],
    fields: Mapping[str, Sequence[str]],
    limit: int | None,
    max_new_tokens: int,
) -> list[Trial]:
    """One trial a row."""
    return [
        Trial(
            index=index,
            measure=measure,
            group=measure,
            prompt=row["prompt"],
            max_new_tokens=max_new_tokens,
            goal=row.get("goal", ""),
        )
        for index, row in enumerate(_rows(sources, fields, limit))
    ]


def _rows(sources: Sequence[str], fields: Mapping[str, Sequence[str]], limit: int | None) -> list[Row]:
    return [row for source in sources for row in read_prompt_set(source, fields)[:limit]]
