"""Whether two models have one vocabulary, and the bridge where they have two."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from ssd_engine.bridge.bridge import Bridge, Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def first_difference(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, size: int) -> int | None:
    """The first id below `size` that is two different tokens; None: they have one vocabulary."""
    if other is tokenizer:
        return None
    ours, theirs = ({i: token for token, i in t.get_vocab().items()} for t in (tokenizer, other))
    return next((token_id for token_id in range(size) if ours.get(token_id) != theirs.get(token_id)), None)


def bridge_between(target: Vocabulary, draft: Vocabulary) -> Bridge | None:
    """The way between two vocabularies; None: they are one, perhaps padded to different sizes.

    Raises:
        VocabularyMismatchError: nothing can be carried from one to the other.
    """
    difference = first_difference(target.tokenizer, draft.tokenizer, min(target.size, draft.size))
    return None if difference is None else Bridge(target, draft)


def vocabulary(tokenizer: PreTrainedTokenizerBase, size: int, end_ids: Collection[int]) -> Vocabulary:
    """One side of a bridge: a model with so many token ids, whose answers `end_ids` end."""
    ends = frozenset(token_id for token_id in end_ids if token_id < size)
    return Vocabulary(tokenizer=tokenizer, size=size, end_id=_message_end(tokenizer, ends), end_ids=ends)


def _message_end(tokenizer: PreTrainedTokenizerBase, end_ids: Collection[int]) -> int | None:
    """The one of `end_ids` with which the chat template ends an assistant's message, or the tokenizer's own end."""
    written: list[int] = []
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
        with suppress(TemplateError):  # one that wants other messages
            text = str(tokenizer.apply_chat_template(messages, tokenize=False))
            written = tokenizer.encode(text, add_special_tokens=False)
    candidates = [*reversed(written), tokenizer.eos_token_id, *sorted(end_ids)]
    return next((token_id for token_id in candidates if token_id in end_ids), None)
