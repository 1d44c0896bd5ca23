"""The target's own answers to harmless prompts, which the draft learns to agree with."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ssd_engine.alignment.beginnings import OPENINGS
from ssd_engine.alignment.disguises import framed
from ssd_engine.alignment.settings import AlignSettings
from ssd_engine.chat import Conversation
from ssd_engine.config import GenerationParams
from ssd_engine.engine import SSDEngine
from ssd_engine.journal import Journal
from ssd_engine.work import AT_ONCE, Reporter, answered


@dataclass(frozen=True)
class Question:
    """A harmless prompt with all that stands around it, and how its answer is made to begin."""

    prompt: str
    opening: str = ""
    max_new_tokens: int = 512
    system: str = ""
    tools: str = ""
    """The tools on offer: their specifications as JSON."""

    @property
    def conversation(self) -> Conversation:
        """What the target and the draft read, without the opening."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        tools: list[dict[str, Any]] = json.loads(self.tools) if self.tools else []
        return Conversation.parse([*system, {"role": "user", "content": self.prompt}], tools)


@dataclass(frozen=True)
class Answer:
    """What the target says, behind the opening; with its end token where it came to an end."""

    question: Question
    token_ids: tuple[int, ...]


def harmless_questions(
    ordinary: Sequence[Question], look_alikes: Sequence[str], settings: AlignSettings
) -> list[Question]:
    """All prompts as they are, and look-alikes also in a disguise, and every other one with an opening.

    Else the draft would learn that a disguise, or an answer that begins with "Sure", is harmful in itself.
    """
    short = min(settings.answer_tokens, 64)  # enough to see that it is an answer
    questions = [replace(question, max_new_tokens=settings.answer_tokens) for question in ordinary]
    questions += [Question(prompt, max_new_tokens=short) for prompt in look_alikes]
    for index, prompt in enumerate(look_alikes):
        rng = random.Random(f"{settings.seed} look-alike {index}")
        questions.append(Question(framed(prompt, rng), max_new_tokens=short))
        if index % 2:
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
        conversation = question.conversation
        opening = [{"role": "assistant", "content": question.opening}] if question.opening else []
        # Without the draft: in batches, the target is busy enough by itself.
        params = GenerationParams(
            max_new_tokens=question.max_new_tokens, decoding="target", continue_final_message=bool(opening)
        )
        result = engine.generate([*conversation.messages, *opening], params, tools=conversation.tools)
        row = {"question": asdict(question), "target": engine.name, "text": result.text, "token_ids": result.token_ids}
        journal.append(row)
        return tuple(result.token_ids)

    missing = [question for question in questions if question not in known]
    known.update(answered(answer, missing, report, "The target answers harmless prompts", AT_ONCE))
    return [Answer(question, known[question]) for question in questions]
