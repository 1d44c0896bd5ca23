"""The target's own answers to harmless prompts, which the draft learns to agree with."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ssd_engine.alignment.beginnings import OPENINGS, framed
from ssd_engine.alignment.settings import AlignSettings
from ssd_engine.config import GenerationParams
from ssd_engine.engine import SSDEngine
from ssd_engine.journal import Journal
from ssd_engine.work import AT_ONCE, Reporter, answered


@dataclass(frozen=True)
class Question:
    """A harmless prompt, and how its answer is made to begin."""

    prompt: str
    opening: str = ""
    max_new_tokens: int = 512


@dataclass(frozen=True)
class Answer:
    """What the target says, behind the opening; with its end token where it came to an end."""

    question: Question
    token_ids: tuple[int, ...]


def harmless_questions(ordinary: Sequence[str], look_alikes: Sequence[str], settings: AlignSettings) -> list[Question]:
    """All prompts as they are, and look-alikes also in a disguise and with an opening.

    Else the draft would learn that a disguise, or an answer that begins with "Sure", is harmful in itself.
    """
    questions = [Question(prompt, max_new_tokens=settings.answer_tokens) for prompt in [*ordinary, *look_alikes]]
    short = min(settings.answer_tokens, 64)
    for index, prompt in enumerate(look_alikes):
        rng = random.Random(f"{settings.seed} look-alike {index}")
        if index % 2:
            questions.append(Question(framed(prompt, rng), max_new_tokens=short))
        else:
            questions.append(Question(prompt, rng.choice(OPENINGS), short))
    return list(dict.fromkeys(questions))


def target_answers(
    engine: SSDEngine, questions: Sequence[Question], journal: Journal, report: Reporter
) -> list[Answer]:
    """The target's greedy answers, in the order of `questions`; those that the journal has are taken from there."""
    known = {
        Question(**row["question"]): tuple(row["token_ids"]) for row in journal.read() if row["target"] == engine.name
    }

    def answer(question: Question) -> tuple[int, ...]:
        messages = [{"role": "user", "content": question.prompt}]
        if question.opening:
            messages.append({"role": "assistant", "content": question.opening})
        # The lossless rule: the target's tokens, with the draft for speed.
        params = GenerationParams(
            max_new_tokens=question.max_new_tokens,
            decoding="speculative",
            continue_final_message=bool(question.opening),
        )
        result = engine.generate(messages, params)
        row = {"question": asdict(question), "target": engine.name, "text": result.text, "token_ids": result.token_ids}
        journal.append(row)
        return tuple(result.token_ids)

    missing = [question for question in questions if question not in known]
    known.update(answered(answer, missing, report, "The target answers harmless prompts", AT_ONCE))
    return [Answer(question, known[question]) for question in questions]
