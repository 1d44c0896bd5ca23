"""Speller: writes bytes of text in the tokens of one vocabulary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from ssd_engine.bridge.token_bytes import TokenBytes, is_byte_fallback

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Speller:
    """Writes bytes in a tokenizer's tokens, never in control tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, known: TokenBytes) -> None:
        """`known`: its `token_bytes`."""
        self._known = known
        description = json.loads(tokenizer.backend_tokenizer.to_str())
        plain = {**description, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        self._tokenizer = Tokenizer.from_str(json.dumps(plain))
        self._ids = _ids_by_bytes(tokenizer, known)
        self._longest = max(map(len, self._ids))

    def spell(self, texts: Sequence[bytes]) -> list[tuple[int, ...]]:
        """Each of `texts` as its tokens; nothing where some byte has no token.

        As the tokenizer would write it, where it keeps these bytes as they are: it may put a space in front, or change
        them, and part of a character is no text for it. Then from the left, the longest token first.
        """
        exact = [self._ids.get(text) for text in texts]
        unknown = {index: _decoded(texts[index]) for index, token_id in enumerate(exact) if token_id is None}
        whole = {index: decoded for index, decoded in unknown.items() if decoded is not None}
        encoded = self._tokenizer.encode_batch(list(whole.values()), add_special_tokens=False)
        written = {index: tuple(encoding.ids) for index, encoding in zip(whole, encoded, strict=True)}
        spelled: list[tuple[int, ...]] = []
        for index, (text, token_id) in enumerate(zip(texts, exact, strict=True)):
            if token_id is not None:
                spelled.append((token_id,))
            elif index in written and self._says(written[index], text):
                spelled.append(written[index])
            else:
                spelled.append(self._longest_first(text))
        return spelled

    def _says(self, token_ids: Sequence[int], text: bytes) -> bool:
        return b"".join(self._known[token_id] or b"" for token_id in token_ids) == text

    def _longest_first(self, text: bytes) -> tuple[int, ...]:
        token_ids: list[int] = []
        start = 0
        while start < len(text):
            ends = range(min(len(text), start + self._longest), start, -1)
            end = next((end for end in ends if text[start:end] in self._ids), None)
            if end is None:
                return ()
            token_ids.append(self._ids[text[start:end]])
            start = end
        return tuple(token_ids)


def _ids_by_bytes(tokenizer: PreTrainedTokenizerBase, known: TokenBytes) -> dict[bytes, int]:
    """The token that stands for exactly some bytes; where several do, one that is no byte fallback."""
    ids: dict[bytes, int] = {}
    for token_id, text in enumerate(known):
        if text and (text not in ids or is_byte_fallback(tokenizer.convert_ids_to_tokens(ids[text]))):
            ids[text] = token_id
    return ids


def _decoded(text: bytes) -> str | None:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None
