"""The bytes of text that each token of a vocabulary stands for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from ssd_engine.errors import VocabularyMismatchError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TokenBytes = Sequence[bytes | None]
"""By token id; None: a control token, or no token at all. Text never becomes a control token, nor the other way."""

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What SentencePiece writes in the place of a space."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SAMPLE = (
    "The quick brown fox jumps over the lazy dog.",
    "It's 12:30, and 1,234.50 USD were paid (twice)!",
    "def area(r):\n    if r < 0:\n        raise ValueError(r)\n\treturn 3.14 * r ** 2\n",
    '{"name": "Ada",  "tags": ["a", "b"]}\n\n# Title\n- one\n- two\n',
    "Caf\u00e9, na\u00efve, \u00fcber, \u0159eka, \u20ac5, \u201cquoted\u201d \u2026 \u2014",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002 \u041f\u0440\u0438\u0432\u0435\u0442. \u0645\u0631\u062d\u0628\u0627",
    "Well done \U0001f389  two  spaces",
)


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> TokenBytes:
    """The bytes of every token.

    Raises:
        VocabularyMismatchError: the tokenizer's tokens have no exact bytes, or it changes text.
    """
    name = tokenizer.name_or_path or type(tokenizer).__name__
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise VocabularyMismatchError(
            f"the tokenizer {name!r} has no tokenizer.json, so the text of its tokens is not known byte for byte; save "
            "it as a fast tokenizer, or use a draft of the target's own family"
        )
    known = _bytes_of(json.loads(backend.to_str()), tokenizer.get_vocab(), name)
    _require_exact(tokenizer, known, name)
    return known


def _bytes_of(description: Mapping[str, Any], vocabulary: Mapping[str, int], name: str) -> list[bytes | None]:
    """The bytes of each token of a tokenizer.json."""
    kinds = {part["type"]: part for part in _parts(description["decoder"])}
    if "ByteLevel" in kinds:
        decode = _decode_byte_level
    elif "Metaspace" in kinds or kinds.get("Replace", {}).get("pattern") == {"String": _SPACE}:
        decode = _decode_sentence_piece
    else:
        raise VocabularyMismatchError(
            f"the tokenizer {name!r} decodes with {' and '.join(kinds) or 'nothing'}, so the text of its tokens is not "
            "known byte for byte; use a pair with byte-level or SentencePiece tokenizers"
        )
    known: list[bytes | None] = [None] * (1 + max(vocabulary.values()))
    for token, token_id in vocabulary.items():
        known[token_id] = decode(token)
    for added in description["added_tokens"]:
        known[added["id"]] = None if added["special"] else added["content"].encode()
    return known


def _parts(step: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """A decoder's parts, those of sequences within it included."""
    if step is None:
        return
    if step["type"] == "Sequence":
        for part in step["decoders"]:
            yield from _parts(part)
    else:
        yield step


@cache
def _byte_of_character() -> dict[str, int]:
    """How byte-level tokenizers write bytes: those of visible Latin-1 characters as themselves, others from 256 on."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (byte for byte in range(256) if byte not in visible)
    return {chr(byte): byte for byte in visible} | {chr(256 + index): byte for index, byte in enumerate(others)}


def _decode_byte_level(token: str) -> bytes:
    table = _byte_of_character()
    try:
        return bytes([table[character] for character in token])
    except KeyError:  # written as it is, as added tokens are
        return token.encode()


def is_byte_fallback(token: str) -> bool:
    """Whether it is a token that SentencePiece writes a byte with for which it has no other."""
    return _BYTE.fullmatch(token) is not None


def _decode_sentence_piece(token: str) -> bytes:
    if byte := _BYTE.fullmatch(token):
        return bytes([int(byte[1], 16)])
    return token.replace(_SPACE, " ").encode()


def _require_exact(tokenizer: PreTrainedTokenizerBase, known: TokenBytes, name: str) -> None:
    """Raise `VocabularyMismatchError` where ordinary text does not come back from its tokens."""
    changed = []
    for text in _SAMPLE:
        token_ids = tokenizer.encode(text, add_special_tokens=False)
        again = b"".join(known[token_id] or b"" for token_id in token_ids)
        if text.encode() not in (again, again.removeprefix(b" ")):  # some put a space in front of every text
            changed.append(text)
    if changed:
        raise VocabularyMismatchError(
            f"the tokenizer {name!r} changes text: {len(changed)} of {len(_SAMPLE)} samples do not come back from its "
            f"tokens, {changed[0]!r} for one; use a pair whose tokenizers keep text as it is"
        )
