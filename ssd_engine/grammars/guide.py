"""Constrained decoding: which tokens a grammar still allows, by llguidance."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import llguidance.numpy
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from ssd_engine.errors import InvalidRequestError, SSDError
from ssd_engine.grammars.json_schema import warn_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

_LIMITS = LLParserLimits(verbose_errors=False)  # messages hold no part of an answer


class Guide:
    """Where one answer stands in its grammar. It moves on with every token, and back as far as it was committed."""

    def __init__(self, source: str, matcher: LLMatcher, num_bits: int, vocab_size: int, eos_ids: Sequence[int]) -> None:
        self.source = source
        """The grammar, as `llguidance` takes it."""
        self._matcher = matcher
        # Going back is done with a copy (a microsecond): the library's own rollback counts bytes, and loses count at
        # tokens that are named by their ids and at the end of the sequence (llguidance pull request 364).
        self._committed = matcher.deep_copy()
        self._num_committed = 0
        self._num_bits = num_bits
        self._vocab_size = vocab_size
        self._eos_ids = eos_ids
        self._token_ids: list[int] = []
        self._allowed: NDArray[np.bool_] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether an end-of-sequence token ended the answer."""
        return bool(self._token_ids) and self._token_ids[-1] in self._eos_ids

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """[V] the tokens that may come next."""
        if self._allowed is None:
            bits = llguidance.numpy.allocate_token_bitmask(1, self._num_bits)
            llguidance.numpy.fill_next_token_bitmask(self._matcher, bits)
            self._require_no_error()
            self._allowed = np.unpackbits(bits.view(np.uint8), bitorder="little")[: self._vocab_size].astype(bool)
        return self._allowed

    def take_forced(self, most: int) -> list[int]:
        """The tokens, at most `most`, that must come next; the guide moves past them."""
        taken: list[int] = []
        while not self.has_ended and (forced := self._forced()[: most - len(taken)]):
            self.advance(forced)
            taken += forced
        return taken

    def advance(self, token_ids: Sequence[int]) -> None:
        """Take in tokens that the grammar allows."""
        self._allowed = None
        for token_id in token_ids:  # one by one: only so does a grammar that is complete take its end
            self._matcher.consume_token(token_id)
        self._require_no_error()
        self._token_ids += token_ids

    def commit(self) -> None:
        """Let the tokens so far stand: `go_back` goes no further."""
        self._committed = self._matcher.deep_copy()
        self._num_committed = len(self._token_ids)

    def go_back(self, num_tokens: int) -> None:
        """Forget all but the answer's first `num_tokens` tokens, among which are those that stand."""
        if num_tokens < len(self._token_ids):
            again = self._token_ids[self._num_committed : num_tokens]
            self._matcher = self._committed.deep_copy()
            self._token_ids = self._token_ids[: self._num_committed]
            self.advance(again)

    def _forced(self) -> list[int]:
        """Some of the tokens that must come next; none where there is a choice."""
        if self._matcher.is_stopped():
            self._require_no_error()
            return [self._eos_ids[0]]
        tokens = self._matcher.compute_ff_tokens()
        # These are the bytes that must come, tokenized; the first that is no way on leaves a choice open.
        tokens = tokens[: self._matcher.validate_tokens(tokens)]
        if not tokens and self.allowed.sum() == 1:
            tokens = np.flatnonzero(self.allowed).tolist()
        return tokens

    def _require_no_error(self) -> None:
        if self._matcher.is_error():
            raise SSDError(f"the grammar cannot be followed any further: {self._matcher.get_error()}; simplify it")


class GrammarCompiler:
    """Compiles grammars for one pair's vocabulary of `vocab_size` tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, eos_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        # The tokenizer's own end comes first: it is the one that is written where the grammar has ended.
        self._eos_ids = sorted(eos_ids, key=lambda i: (i != tokenizer.eos_token_id, i))
        self._vocabulary: LLTokenizer | None = None
        self._lock = threading.Lock()

    def compile(self, source: str) -> Guide:
        """A guide at the beginning of an answer; `source` is what `llguidance` takes.

        Raises:
            InvalidRequestError: it is no grammar, or this tokenizer cannot be used with one.
        """
        with self._lock:
            # Made at the first need: it takes a second or two.
            vocabulary = self._vocabulary = self._vocabulary or self._make_vocabulary()
        matcher = LLMatcher(vocabulary, source, limits=_LIMITS)
        if matcher.is_error():
            raise InvalidRequestError(f"the grammar cannot be compiled: {matcher.get_error().strip()}")
        for text in matcher.get_grammar_warnings():
            warn_of(text)
        return Guide(source, matcher, vocabulary.vocab_size, self._vocab_size, self._eos_ids)

    def _make_vocabulary(self) -> LLTokenizer:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None or not self._eos_ids:
            raise InvalidRequestError(
                f"{type(self._tokenizer).__name__} with end-of-sequence ids {self._eos_ids} cannot follow a grammar: "
                "that needs a fast tokenizer (tokenizer.json) and an end-of-sequence token"
            )
        description = _without_spellable_markers(json.loads(backend.to_str()))
        size = max(self._vocab_size, len(self._tokenizer))
        return LLTokenizer(json.dumps(description), n_vocab=size, eos_token=self._eos_ids)


def is_marker(token: str) -> bool:
    """Whether an added token marks structure, as `<tool_call>` does, and is no text."""
    return token[:1] + token[-1:] in ("<>", "[]")


def _without_spellable_markers(description: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json in which no text is a control token: a schema may ask for the text `<|im_end|>`."""
    names: dict[str, str] = {}
    for token in description["added_tokens"]:
        if token["special"] or is_marker(token["content"]):
            names[token["content"]] = f"<\ue000{token['id']}>"
            token.update(content=names[token["content"]], special=True)
    vocab = description["model"].get("vocab")
    if isinstance(vocab, dict):
        description["model"]["vocab"] = {names.get(token, token): i for token, i in vocab.items()}
    elif vocab:
        description["model"]["vocab"] = [[names.get(token, token), score] for token, score in vocab]
    return {**description, "truncation": None, "padding": None}
