"""Training examples: recoveries, which turn back to a refusal, and agreements with the target."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ssd_engine.alignment.answers import Answer
from ssd_engine.alignment.beginnings import Beginning, framed, request_ids
from ssd_engine.alignment.settings import AlignSettings
from ssd_engine.chat import ChatRenderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["recovery", "agreement"]


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

    def agreement(self, answer: Answer) -> Example:
        """The target's answer to an ordinary prompt."""
        prompt_ids = request_ids(self._renderer, answer.prompt)
        return Example("agreement", (*prompt_ids, *answer.token_ids), len(answer.token_ids))

    def recoveries(self, beginning: Beginning, rng: random.Random) -> list[Example]:
        """Refusals of one request: at once, and after beginnings of all lengths, cut anywhere."""
        request = framed(beginning.goal, rng) if rng.random() < self._settings.framed_share else beginning.goal
        examples = [self._recovery(request, ())]
        deep = self._settings.recoveries - 1
        for stratum in range(deep):
            first, last = (round(len(beginning.token_ids) * (stratum + i) / deep) for i in (0, 1))
            length = rng.randint(min(first + 1, last), max(last, 1))
            examples.append(self._recovery(beginning.request, beginning.token_ids[:length]))
        return examples

    def _recovery(self, request: str, beginning: Sequence[int]) -> Example:
        begun = self._tokenizer.decode(beginning)
        joint = "" if not begun or begun.endswith("\n") else "\n\n"
        refusal = self._tokenizer(joint + self._settings.refusal, add_special_tokens=False).input_ids
        learned = [*refusal, self._tokenizer.eos_token_id]
        return Example("recovery", (*request_ids(self._renderer, request), *beginning, *learned), len(learned))


def split(items: Sequence[Any], share: float, rng: random.Random) -> tuple[list[Any], list[Any]]:
    """Items to train on, and at least one, about `share` of them, to validate with."""
    shuffled = list(items)
    rng.shuffle(shuffled)
    held_out = max(1, round(len(shuffled) * share))
    return shuffled[held_out:], shuffled[:held_out]
