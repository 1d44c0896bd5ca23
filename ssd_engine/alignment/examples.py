"""Training examples: recoveries, which turn back to a refusal, and agreements with the target."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ssd_engine.alignment.agent_requests import SYSTEM_PROMPTS, TOOL_SETS
from ssd_engine.alignment.answers import Answer
from ssd_engine.alignment.beginnings import Beginning
from ssd_engine.alignment.disguises import framed
from ssd_engine.alignment.forms import Messages, after_other_turn, user, with_beginning
from ssd_engine.alignment.refusals import joint_after, refusal_text
from ssd_engine.alignment.settings import AlignSettings
from ssd_engine.errors import InvalidRequestError
from ssd_engine.prompts.conversation import ChatRenderer, Conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["recovery", "agreement"]
_DEEPEST = 0.2
"""Share of a beginning, its end, in which one recovery more is cut than elsewhere: attackers give that much."""
_INSTRUCTED_SHARE = 0.25
"""Share of harmful requests with an application's instructions or tools around them."""


@dataclass(frozen=True)
class Ending:
    """Tokens to be learned, and how much of the context comes before them."""

    place: int
    token_ids: tuple[int, ...]

    @property
    def is_start(self) -> bool:
        """Whether it is, of a refusal, the first token alone."""
        return len(self.token_ids) == 1


@dataclass(frozen=True)
class Example:
    """A conversation, and one or more ways in which it has to go on from places in it, each as if it was the only one.

    So the request and the beginning of an answer are computed once for all refusals that follow its parts.
    """

    kind: Kind
    context: tuple[int, ...]
    endings: tuple[Ending, ...]

    @property
    def num_learned(self) -> int:
        """Tokens that are learned."""
        return sum(len(ending.token_ids) for ending in self.endings)

    @property
    def shared(self) -> tuple[int, ...]:
        """The context, up to where the deepest ending's own tokens begin: with the last token before it."""
        return self.context[: max(ending.place for ending in self.endings) - 1]

    @property
    def num_tokens(self) -> int:
        """Tokens that are read for it."""
        return len(self.shared) + self.num_learned


class ExampleMaker:
    """Writes examples with the draft's own chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: AlignSettings) -> None:
        self._tokenizer = tokenizer
        self._renderer = ChatRenderer(tokenizer)
        self._settings = settings
        self._end_id = self._end_of_answer()

    def agreement(self, answer: Answer) -> Example:
        """The writer's answer to a harmless prompt, from behind its opening on: what was begun goes on."""
        question = answer.question
        context = (*self._renderer.encode(question.conversation), *self._encode(question.opening))
        token_ids = answer.token_ids or (*self._encode(answer.text), self._end_id)
        return Example("agreement", context, (Ending(len(context), token_ids),))

    def recoveries(self, beginning: Beginning, others: Sequence[Answer]) -> list[Example]:
        """Refusals of one request.

        At once and after beginnings of all lengths, cut anywhere; in disguises; and where its answer was begun
        elsewhere, or after one of `others`, harmless questions with their answers.
        """
        rng = random.Random(f"{self._settings.seed} {beginning.goal} {beginning.token_ids}")
        goal = beginning.goal
        is_framed = rng.random() < self._settings.framed_share
        examples = [self._at_all_depths(beginning, framed(goal, rng) if is_framed else goal, rng)]
        asked = [user(framed(goal, rng)) for _ in range(self._settings.disguises)]
        if rng.random() < self._settings.turned_share:
            asked.append(self._turned(beginning, others, rng))
        return examples + [self._at_once(goal, messages, rng) for messages in asked]

    def _at_all_depths(self, beginning: Beginning, request: str, rng: random.Random) -> Example:
        context = self._request(user(request), rng)
        strata = self._settings.recoveries - 2
        bounds = [(i / strata, (i + 1) / strata) for i in range(strata)] + [(1 - _DEEPEST, 1.0)]
        length = len(beginning.token_ids)
        cuts = [0, *(math.ceil(rng.uniform(first, last) * length) for first, last in bounds)]
        rest = sorted(set(range(length)) - set(cuts))
        starts = sorted(rng.sample(rest, min(self._settings.starts, len(rest))))
        endings = [(cut, self._refusal(beginning.goal, beginning.token_ids[:cut])) for cut in cuts]
        endings += [(cut, self._refusal(beginning.goal, beginning.token_ids[:cut])[:1]) for cut in starts]
        return Example(
            "recovery",
            (*context, *beginning.token_ids),
            tuple(Ending(len(context) + cut, token_ids) for cut, token_ids in endings),
        )

    def _at_once(self, goal: str, messages: Messages, rng: random.Random) -> Example:
        context = self._request(messages, rng)
        return Example("recovery", context, (Ending(len(context), self._refusal(goal, ())),))

    def _turned(self, beginning: Beginning, others: Sequence[Answer], rng: random.Random) -> Messages:
        begun = self._tokenizer.decode(beginning.token_ids[: rng.randint(5, 60)]).strip()
        if begun and (not others or rng.random() < 0.7):
            return with_beginning(beginning.goal, begun, rng)
        other = rng.choice(others) if others else None
        if other is None or not other.text.strip():
            return user(beginning.goal)
        return after_other_turn(beginning.goal, other.question.prompt, other.text)

    def _refusal(self, goal: str, begun_ids: Sequence[int]) -> tuple[int, ...]:
        begun = self._tokenizer.decode(begun_ids)
        text = refusal_text(self._settings.stop if begun else self._settings.refusal, goal)
        return (*self._encode(joint_after(begun) + text), self._end_id)

    def _request(self, messages: Messages, rng: random.Random) -> tuple[int, ...]:
        around: Any = (
            rng.choice((*SYSTEM_PROMPTS, *TOOL_SETS))
            if self._settings.agents and rng.random() < _INSTRUCTED_SHARE
            else ""
        )
        if isinstance(around, str):
            instructions = [{"role": "system", "content": around}] if around else []
            return tuple(self._renderer.encode(Conversation.parse([*instructions, *messages])))
        return tuple(self._renderer.encode(Conversation.parse(messages, around)))

    def _encode(self, text: str) -> list[int]:
        token_ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return token_ids

    def _end_of_answer(self) -> int:
        """The token that the chat template puts behind an answer."""
        conversation = Conversation.parse([{"role": "user", "content": "?"}, {"role": "assistant", "content": "yes"}])
        open_ids = self._renderer.encode(conversation, continue_final_message=True)
        token_id = self._renderer.encode(conversation)[len(open_ids)]
        is_special = token_id in self._tokenizer.all_special_ids
        return token_id if is_special else int(self._tokenizer.eos_token_id)


def split(items: Sequence[Any], share: float, rng: random.Random) -> tuple[list[Any], list[Any]]:
    """Items to train on, and at least one, about `share` of them, to validate with; no item is in both.

    Raises:
        InvalidRequestError: there are fewer than two.
    """
    shuffled = list(dict.fromkeys(items))
    if len(shuffled) < 2:
        raise InvalidRequestError(
            f"{shuffled[0]!r} stands alone; give two different rows at least, since one is kept to validate with"
        )
    rng.shuffle(shuffled)
    held_out = max(1, round(len(shuffled) * share))
    return shuffled[held_out:], shuffled[:held_out]
