"""The target's own answers to ordinary prompts, which the draft learns to agree with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ssd_engine.config import GenerationParams
from ssd_engine.engine import SSDEngine
from ssd_engine.journal import Journal
from ssd_engine.work import Reporter, answered

AT_ONCE = 8
"""Requests that are answered together."""


@dataclass(frozen=True)
class Answer:
    """What the target says to a prompt, its end token included where it came to an end."""

    prompt: str
    token_ids: tuple[int, ...]


def target_answers(
    engine: SSDEngine, prompts: Sequence[str], max_new_tokens: int, journal: Journal, report: Reporter
) -> list[Answer]:
    """The target's greedy answers, in the order of `prompts`; those that the journal has are taken from there."""
    about = {"target": engine.name, "max_new_tokens": max_new_tokens}
    known = {
        row["prompt"]: Answer(row["prompt"], tuple(row["token_ids"]))
        for row in journal.read()
        if {key: row.get(key) for key in about} == about
    }
    # The lossless rule: the target's tokens, with the draft for speed.
    params = GenerationParams(max_new_tokens=max_new_tokens, decoding="speculative")

    def answer(prompt: str) -> Answer:
        result = engine.generate([{"role": "user", "content": prompt}], params)
        journal.append({"prompt": prompt, **about, "text": result.text, "token_ids": result.token_ids})
        return Answer(prompt, tuple(result.token_ids))

    missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
    for prompt, found in answered(answer, missing, report, "The target answers ordinary prompts", AT_ONCE):
        known[prompt] = found
    return [known[prompt] for prompt in prompts]
