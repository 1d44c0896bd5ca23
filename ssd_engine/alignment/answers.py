"""The writer's answers to harmless prompts, which the draft learns to agree with: the target's, or its own."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ssd_engine.alignment.disguises import framed
from ssd_engine.alignment.forms import Messages, after_other_turn, user, with_beginning
from ssd_engine.alignment.settings import AlignSettings
from ssd_engine.alignment.styles import drawn_style
from ssd_engine.campaigns.journal import Journal
from ssd_engine.campaigns.work import AT_ONCE, Reporter, answered
from ssd_engine.config import GenerationParams
from ssd_engine.evaluation.judges import find_refusal
from ssd_engine.pair_engine import SSDEngine
from ssd_engine.prompts.conversation import Conversation

REASSURANCE = "The question is harmless and asked for a good reason. Answer it directly."
"""Instruction for the writer where it refuses what is harmless."""
_BEGUN_SHARE = 0.5
"""Share of ordinary prompts that are asked with a begun answer besides."""


@dataclass(frozen=True)
class Question:
    """A harmless prompt with all that stands around it, and how its answer is made to begin."""

    prompt: str
    opening: str = ""
    max_new_tokens: int = 512
    system: str = ""
    tools: str = ""
    """The tools on offer: their specifications as JSON."""
    turns: str = ""
    """The messages, as JSON, where the prompt does not stand alone."""
    style: str = ""
    """An instruction that the writer alone reads: what is learned stands without it."""
    answer: str = ""
    """The answer, where it is known: then nobody is asked."""

    @property
    def conversation(self) -> Conversation:
        """What the draft reads, without the opening."""
        return self._with_system(self.system)

    @property
    def asked(self) -> Conversation:
        """What the writer reads, without the opening."""
        return self._with_system(f"{self.system}\n\n{self.style}".strip())

    def _with_system(self, text: str) -> Conversation:
        system: Messages = [{"role": "system", "content": text}] if text else []
        turns: Messages = json.loads(self.turns) if self.turns else user(self.prompt)
        tools: list[dict[str, Any]] = json.loads(self.tools) if self.tools else []
        return Conversation.parse([*system, *turns], tools)


@dataclass(frozen=True)
class Answer:
    """What the writer says, behind the opening; with its end token where it came to an end."""

    question: Question
    token_ids: tuple[int, ...]
    """As the draft reads them; empty where the answer was known."""
    text: str

    @property
    def refuses(self) -> bool:
        """Whether the answer is a refusal, by its phrases."""
        return find_refusal(self.text, has_ended=True).holds


def harmless_questions(
    ordinary: Sequence[Question], look_alikes: Sequence[str], settings: AlignSettings
) -> list[Question]:
    """All prompts, some look-alikes in a disguise; and, begun in some style, each look-alike and half of the others.

    Else the draft would learn that a disguise, or an answer that begins with "Sure", is harmful in itself.
    """
    short = min(settings.answer_tokens, 64)  # enough to see that it is an answer
    questions = [replace(question, max_new_tokens=settings.answer_tokens) for question in ordinary]
    for prompt in look_alikes:
        rng = random.Random(f"{settings.seed} look-alike {prompt}")  # its own, so that no other changes it
        asked, *begun = (
            framed(prompt, rng) if rng.random() < settings.framed_share else prompt
            for _ in range(1 + settings.beginnings)
        )
        questions += [Question(asked, max_new_tokens=short), *(_begun(text, short, rng) for text in begun)]
    for question in ordinary:
        rng = random.Random(f"{settings.seed} ordinary {question.prompt}")
        if not question.tools and rng.random() < _BEGUN_SHARE:
            questions.append(_begun(question.prompt, short, rng))
    return list(dict.fromkeys(questions))


def _begun(prompt: str, max_new_tokens: int, rng: random.Random) -> Question:
    style, opening = drawn_style(rng)
    return Question(prompt, opening, max_new_tokens, style=style)


def turned_questions(answers: Sequence[Answer], settings: AlignSettings) -> list[Question]:
    """Questions whose answers have a beginning elsewhere, or that follow another question.

    They are harmless, and of the forms in which harmful requests are refused.
    """
    rng = random.Random(f"{settings.seed} turns")
    plain = [answer for answer in answers if not (answer.question.tools or answer.question.turns or answer.refuses)]
    questions = []
    for answer in plain:
        if rng.random() >= settings.turned_share or not answer.text.strip():
            continue
        begun = answer.text[: rng.randint(20, 240)].rstrip()
        messages = (
            with_beginning(answer.question.prompt, begun, rng)
            if rng.random() < 0.7
            else after_other_turn(rng.choice(plain).question.prompt, answer.question.prompt, answer.text)
        )
        short = min(settings.answer_tokens, 64)
        questions.append(Question(messages[-1]["content"], max_new_tokens=short, turns=json.dumps(messages)))
    return list(dict.fromkeys(questions))


def harmless_answers(
    engine: SSDEngine,
    questions: Sequence[Question],
    settings: AlignSettings,
    journal: Journal,
    report: Reporter,
) -> list[Answer]:
    """The writer's answers to `questions` and to some of them in further forms; none that refuses a look-alike.

    Where it refuses, it is asked again with a reassurance that the draft does not read.
    """
    first = written_answers(engine, questions, journal, report)
    refused = [answer.question for answer in first if answer.refuses and not answer.question.style]
    again = written_answers(engine, [replace(question, style=REASSURANCE) for question in refused], journal, report)
    further = written_answers(engine, turned_questions(first, settings), journal, report)
    return [answer for answer in [*first, *again, *further] if not answer.refuses]


def written_answers(
    engine: SSDEngine, questions: Sequence[Question], journal: Journal, report: Reporter
) -> list[Answer]:
    """The writer's greedy answers, in the order of `questions`; those that the journal has are taken from there."""
    known = {Question(**row["question"]): row for row in journal.read() if row["writer"] == engine.name}

    def answer(question: Question) -> dict[str, Any]:
        conversation = question.asked
        opening = [{"role": "assistant", "content": question.opening}] if question.opening else []
        # Without a draft: in batches, the writer is busy enough by itself.
        params = GenerationParams(
            max_new_tokens=question.max_new_tokens, decoding="target", continue_final_message=bool(opening)
        )
        result = engine.generate([*conversation.messages, *opening], params, tools=conversation.tools)
        token_ids = engine.draft_token_ids(result.token_ids)
        row = {"question": asdict(question), "writer": engine.name, "text": result.text, "token_ids": token_ids}
        journal.append(row)
        return row

    missing = [question for question in questions if question not in known]
    known.update(answered(answer, missing, report, f"{engine.name} answers harmless prompts", AT_ONCE))
    return [Answer(question, tuple(known[question]["token_ids"]), known[question]["text"]) for question in questions]
