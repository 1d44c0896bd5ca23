"""Training examples: recoveries, which turn back to a refusal, and agreements with the target."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ssd_engine.alignment.answers import Answer
from ssd_engine.alignment.beginnings import Beginning, framed
from ssd_engine.alignment.settings import AlignSettings
from ssd_engine.chat import ChatRenderer, Conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["recovery", "agreement"]
_DEEPEST = 0.2
"""Share of a beginning, its end, in which one recovery more is cut than elsewhere: attackers give that much."""


@dataclass(frozen=True)
class Example:
    """A conversation of which the last `num_learned` tokens are to be learned."""

    kind: Kind
    token_ids: tuple[int, ...]
    num_learned: int


class ExampleMaker:
    """Writes examples with the draft's own chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: AlignSettings) -> None:
        self._tokenizer = tokenizer
        self._renderer = ChatRenderer(tokenizer)
        self._settings = settings
        self._end_id = self._end_of_answer()

    def agreement(self, answer: Answer) -> Example:
        """The target's answer to a harmless prompt."""
        begun = self._encode(answer.question.opening)
        prompt_ids = self._request(answer.question.prompt)
        return Example("agreement", (*prompt_ids, *begun, *answer.token_ids), len(answer.token_ids))

    def recoveries(self, beginning: Beginning) -> list[Example]:
        """Refusals of one request: at once, and after beginnings of all lengths, cut anywhere."""
        rng = random.Random(f"{self._settings.seed} {beginning.goal}")
        request = framed(beginning.goal, rng) if rng.random() < self._settings.framed_share else beginning.goal
        strata = self._settings.recoveries - 2
        bounds = [(i / strata, (i + 1) / strata) for i in range(strata)] + [(1 - _DEEPEST, 1.0)]
        cuts = [round(rng.uniform(first, last) * len(beginning.token_ids)) for first, last in bounds]
        return [
            self._recovery(request, ()),
            *(self._recovery(beginning.request, beginning.token_ids[: max(cut, 1)]) for cut in cuts),
        ]

    def _recovery(self, request: str, beginning: Sequence[int]) -> Example:
        begun = self._tokenizer.decode(beginning)
        joint = "" if not begun or begun.endswith("\n") else "\n\n"
        learned = [*self._encode(joint + self._settings.refusal), self._end_id]
        return Example("recovery", (*self._request(request), *beginning, *learned), len(learned))

    def _request(self, request: str) -> list[int]:
        return self._renderer.encode(Conversation.parse([{"role": "user", "content": request}]))

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
    """Items to train on, and at least one, about `share` of them, to validate with."""
    shuffled = list(items)
    rng.shuffle(shuffled)
    held_out = max(1, round(len(shuffled) * share))
    return shuffled[held_out:], shuffled[:held_out]


def in_batches(examples: Sequence[Example], batch_size: int, epochs: int, seed: int) -> list[Example]:
    """The examples of all epochs, in an order of batches whose examples are of like length, for little padding."""
    ordered: list[Example] = []
    for epoch in range(epochs):
        rng = random.Random(f"{seed} epoch {epoch}")
        # Full batches only: by length, a rest would always hold the longest.
        chosen = rng.sample(examples, len(examples) - len(examples) % batch_size or len(examples))
        chosen.sort(key=lambda example: len(example.token_ids))
        batches = [chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size)]
        rng.shuffle(batches)
        ordered += [example for batch in batches for example in batch]
    return ordered
