"""Bridge: what the draft of another vocabulary says of the target's next token.

The draft reads an answer in its own tokens: for a token of the target's the one that stands for the same bytes, or
those that its tokenizer writes these bytes with. What it says is a distribution over its own tokens, each of which can
be spelled in the target's. The rule takes m', the distribution of the target's next token if the draft goes on writing
tokens of its own, given the target's that stand, y_1 to y_n:

    m'(z) ~ sum over b from 0 to n of fresh_b * (sum of p_b(j), of all j whose spelling begins with y_b+1 ... y_n z)

p_b is what the draft says after it has read y_1 to y_b; fresh_b the probability that one of its tokens begins after y_b
(`Crossing` keeps these). So a token that both have is carried over as it is. One that the target lacks, say a full stop
and the end of the line, is carried to the first token of its spelling, the full stop; at the next place the rest of it
competes with what the draft says after a mere full stop. Where no tokens of the draft's spell y_1 to y_n, they begin
anew after y_n. Ends of answers are carried by their role, other control tokens not at all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ssd_engine.bridge.crossing import BOUNDARY, Crossing
from ssd_engine.bridge.speller import Speller
from ssd_engine.bridge.token_bytes import TokenBytes, token_bytes
from ssd_engine.errors import InvalidRequestError, VocabularyMismatchError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LONGEST_SPELLING = 16
"""Tokens of the target's; what is left of a longer spelling counts as a new beginning."""
_LEAST_BEGUN = 1e-4
"""A token of the draft's that is under way with a smaller probability is forgotten."""
_MORE_READ = 4
"""Room for one more token of the draft's for so many of the target's: ordinary text needs one for 50 or more."""
_LEAST_SHARED = 0.01
"""Of the smaller vocabulary."""
_UNKNOWN = ("\N{REPLACEMENT CHARACTER}".encode(), b"?", b" ")
"""What the draft reads, the first that it can, for a token without text, or with bytes that it has no token for."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """One side of a bridge."""

    tokenizer: PreTrainedTokenizerBase
    size: int
    """Ids of the model's output, padding included."""
    end_id: int | None
    """The token that ends a message; None: none does."""
    end_ids: frozenset[int]
    """All that end an answer, `end_id` among them."""


class Bridge:
    """The way between the vocabularies of a target and a draft, of V_M and V_m ids."""

    def __init__(self, target: Vocabulary, draft: Vocabulary) -> None:
        """Match the tokens of both.

        Raises:
            VocabularyMismatchError: a tokenizer's tokens are not known byte for byte, or hardly any are shared.
        """
        self.target_size, self.draft_size = target.size, draft.size
        self.target_bytes, self.draft_bytes = _written_bytes(target), _written_bytes(draft)
        self._controls = {
            token_id: draft.tokenizer.added_tokens_encoder[text]
            for text, token_id in target.tokenizer.added_tokens_encoder.items()
            if text in draft.tokenizer.added_tokens_encoder and _at(self.target_bytes, token_id) is None
        }
        """Control tokens of the same name."""
        self._names = {i: text for text, i in target.tokenizer.added_tokens_encoder.items()}
        self._draft_speller = Speller(draft.tokenizer, self.draft_bytes)
        self._target_end_ids = target.end_ids
        self._readings: dict[int, tuple[int, ...]] = {}
        if draft.end_id is not None:
            self._readings = dict.fromkeys(target.end_ids, (draft.end_id,))
        spellings = self._spell(Speller(target.tokenizer, self.target_bytes), draft.end_ids, target.end_id)
        self._spellings = _padded(spellings, draft.size)
        """[V_m, S] int64 of each of the draft's tokens; -1 where there is no more."""
        self._lengths = (self._spellings >= 0).sum(-1)
        self._lacking = (self._lengths != 1).float()
        """[V_m] 1 for tokens that the target has no counterpart of."""
        self._index()
        self._require_shared()

    def _spell(
        self, speller: Speller, end_ids: Collection[int], target_end_id: int | None
    ) -> dict[int, tuple[int, ...]]:
        """The target's tokens for each of the draft's that can be written in them."""
        texts = {i: text for i, text in enumerate(self.draft_bytes) if text}
        spellings = dict(zip(texts, speller.spell(list(texts.values())), strict=True))
        ends = {} if target_end_id is None else dict.fromkeys(end_ids, (target_end_id,))
        return {**spellings, **ends}

    def _index(self) -> None:
        """Lay out which of the draft's tokens add to which of the target's."""
        firsts = self._spellings[:, 0].numpy()
        whole = np.flatnonzero(self._lengths.numpy() == 1)
        source = np.full(self.target_size, -1)
        source[firsts[whole]] = whole
        # All that a target's token is the first of, but for its one source; several ends have one counterpart.
        others = np.flatnonzero((self._lengths.numpy() > 0) & (source[firsts] != np.arange(self.draft_size)))
        others = others[np.argsort(firsts[others], kind="stable")]
        first_ids, starts = np.unique(firsts[others], return_index=True)
        self._source = torch.from_numpy(source.clip(0))
        self._has_source = torch.from_numpy(source >= 0)
        self._others = torch.from_numpy(others)
        self._first_ids = torch.from_numpy(first_ids)
        self._bounds = torch.tensor([*starts.tolist(), len(others)])

    def move(self, device: torch.device) -> None:
        """Keep what `carry` and `go_on` need on a device."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))

    @property
    def num_shared(self) -> int:
        """Tokens that stand for the same in both vocabularies."""
        return int(self._has_source.sum())

    @property
    def sizes(self) -> tuple[int, int]:
        """Tokens of text that the target and the draft have."""
        target, draft = (sum(text is not None for text in known) for known in (self.target_bytes, self.draft_bytes))
        return target, draft

    def is_shared(self, token_id: int) -> bool:
        """Whether the draft has a token for the same as the target's `token_id`."""
        return bool(self._has_source[token_id])

    def _require_shared(self) -> None:
        sizes = self.sizes
        if self.num_shared < _LEAST_SHARED * min(sizes):
            raise VocabularyMismatchError(
                f"target and draft share {self.num_shared} tokens, of {sizes[0]} of the target's and {sizes[1]} of the "
                "draft's: too few to carry one's predictions over to the other; use a draft whose vocabulary has more "
                "of the target's tokens (ssd pair check)"
            )

    def reading(self, token_id: int) -> tuple[int, ...]:
        """What the draft reads for a token of the target's: one token or several, never none."""
        known = self._readings.get(token_id)
        if known is None:
            known = self._readings[token_id] = self._make_reading(token_id)
        return known

    def readings(self, token_ids: Iterable[int]) -> list[int]:
        """What the draft reads for tokens of the target's."""
        return [i for token_id in token_ids for i in self.reading(token_id)]

    def prompt_ids(self, token_ids: Sequence[int]) -> list[int]:
        """What the draft reads for a prompt of the target's tokens.

        Raises:
            InvalidRequestError: there are control tokens among them that the draft has not.
        """
        for token_id in token_ids:
            has_text = _at(self.target_bytes, token_id) is not None
            if not has_text and token_id not in self._controls and token_id not in self._target_end_ids:
                name = self._names.get(token_id)
                raise InvalidRequestError(
                    f"the prompt's token {token_id} ({name!r}) is a control token that the draft has no counterpart "
                    "of; give the draft a prompt of its own as draft_prompt, or give messages"
                )
        return self.readings(token_ids)

    @staticmethod
    def most_read(num_tokens: int) -> int:
        """Room for what the draft reads of an answer of `num_tokens`; an unusual one may need more."""
        return num_tokens + num_tokens // _MORE_READ + _LONGEST_SPELLING

    @staticmethod
    def fewest_written(num_read: int) -> int:
        """The longest answer for which `most_read` is at most `num_read`."""
        return max(num_read - _LONGEST_SPELLING, 0) * _MORE_READ // (_MORE_READ + 1)

    def _make_reading(self, token_id: int) -> tuple[int, ...]:
        if token_id in self._controls:
            return (self._controls[token_id],)
        text = _at(self.target_bytes, token_id) or self._names.get(token_id, "").encode()
        spelled = self._draft_speller.spell([text] if text else [])
        return next(filter(None, (*spelled, *self._draft_speller.spell(_UNKNOWN))), (0,))

    def firsts(self, draft_ids: Iterable[int]) -> frozenset[int]:
        """The target's tokens that spellings of some of the draft's begin with."""
        return frozenset(i for i in self._spellings[list(draft_ids), 0].tolist() if i >= 0)

    def lacking_mass(self, p: Tensor) -> Tensor:
        """[P] how much of the draft's distributions [P, V_m] falls on tokens that the target lacks."""
        return p @ self._lacking

    def carry(self, p: Tensor, crossings: Sequence[Crossing]) -> Tensor:
        """[P, V_M] float32 m' at P places.

        Args:
            p: [P, V_m] float32 the draft's distributions.
            crossings: what may be under way at these places.
        """
        fresh = torch.tensor([crossing.fresh for crossing in crossings], device=p.device)[:, None]
        carried = p.index_select(1, self._source).masked_fill(~self._has_source, 0.0)
        # Sums of neighbours by differences of running sums: exact enough in float64, and one order for every row.
        sums = torch.nn.functional.pad(p.index_select(1, self._others).double().cumsum(-1), (1, 0))
        sums = sums.index_select(1, self._bounds).diff(dim=-1)
        carried[:, self._first_ids] += sums.float()
        carried *= fresh
        for row, crossing in zip(carried, crossings, strict=True):
            if len(crossing.begun):
                row.index_add_(0, self._spellings[crossing.begun, crossing.written], crossing.p)
        return carried / carried.sum(-1, keepdim=True)

    def go_on(self, crossing: Crossing, p: Tensor, token_id: int) -> Crossing:
        """What may be under way after a token of the target's; `p` [V_m] is the draft's distribution before it."""
        fits = self._spellings[crossing.begun, crossing.written] == token_id
        begun, written, weights = crossing.begun[fits], crossing.written[fits] + 1, crossing.p[fits]
        new = self._begun_by(token_id)
        begun = torch.cat([begun, new])
        written = torch.cat([written, torch.ones_like(new)])
        weights = torch.cat([weights, crossing.fresh * p[new]])
        is_done = self._lengths[begun] == written
        fresh = float(weights[is_done].sum())
        if self._has_source[token_id]:
            fresh += crossing.fresh * float(p[self._source[token_id]])
        total = fresh + float(weights[~is_done].sum())
        if not total > 0:  # the draft thought it impossible, or its logits are no numbers
            return BOUNDARY
        kept = ~is_done & (weights >= _LEAST_BEGUN * total)
        total = fresh + float(weights[kept].sum())
        if not total > 0:
            return BOUNDARY
        return Crossing(fresh=fresh / total, begun=begun[kept], written=written[kept], p=weights[kept] / total)

    def _begun_by(self, token_id: int) -> Tensor:
        """[K] tokens of the draft's whose spellings begin with `token_id`, but for its source."""
        at = int(torch.searchsorted(self._first_ids, token_id))
        if at == len(self._first_ids) or int(self._first_ids[at]) != token_id:
            return self._others[:0]
        return self._others[int(self._bounds[at]) : int(self._bounds[at + 1])]


def _written_bytes(side: Vocabulary) -> TokenBytes:
    """The bytes of each token; a tokenizer may know more than its model can write."""
    return [text if token_id < side.size else None for token_id, text in enumerate(token_bytes(side.tokenizer))]


def _at(known: TokenBytes, token_id: int) -> bytes | None:
    """A token's bytes; None for ids of the padding too."""
    return known[token_id] if token_id < len(known) else None


def _padded(spellings: dict[int, tuple[int, ...]], size: int) -> Tensor:
    """[V_m, S] int64 spellings by token id, those of more than the longest cut, filled up with -1."""
    width = min(max(map(len, spellings.values()), default=1), _LONGEST_SPELLING)
    table = np.full((size, max(width, 1)), -1)
    for token_id, spelling in spellings.items():
        table[token_id, : len(spelling)] = spelling[:width]
    return torch.from_numpy(table)
