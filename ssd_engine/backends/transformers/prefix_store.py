"""Prompt prefixes whose keys and values are kept for the next request that starts with the same tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ssd_engine.backends.transformers.kv_cache import Snapshot


def block_ends(prompt_length: int, block_sizes: Sequence[int]) -> list[int]:
    """Where the blocks end in which a prompt is read, largest `block_sizes` first, a smaller one last.

    The prompt's last token is in none of them: the first round reads it. Keys and values depend in their last bits on
    how many tokens were read at once. Blocks that depend only on the prompt's length make them, and so every answer,
    the same whether a prefix was reused or read anew.
    """
    ends: list[int] = []
    position = 0
    for size in block_sizes:
        while prompt_length - 1 - position >= size:
            position += size
            ends.append(position)
    if position < prompt_length - 1:
        ends.append(prompt_length - 1)
    return ends


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """A prefix that was read in blocks."""

    token_ids: tuple[int, ...]
    ends: tuple[int, ...]
    """Where its blocks end; the last is its length."""
    snapshot: Snapshot
    is_whole: bool
    """Whether nothing was left out for want of room."""

    def shared_length(self, token_ids: Sequence[int], ends: Sequence[int]) -> int:
        """Length of the part that a prompt `token_ids`, to be read in blocks with `ends`, can reuse."""
        shared = start = 0
        for mine, other in zip(self.ends, ends, strict=False):
            if mine != other or self.token_ids[start:mine] != tuple(token_ids[start:mine]):
                break
            shared = start = mine
        return shared


class PrefixStore:
    """Bounded store of one model's prefixes; the least recently used go first.

    A prefix larger than the whole store is kept as far as there is room, up to the end of a block. It then takes the
    place of others of its kind, but not that of whole ones, so that it cannot empty the store.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._prefixes: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()
        self._nbytes = 0
        self._whole_nbytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes that the prefixes take."""
        return self._nbytes

    def find(self, token_ids: Sequence[int], ends: Sequence[int]) -> tuple[Prefix | None, int]:
        """The prefix that shares most with a prompt, and how many tokens that is."""
        best = max(self._prefixes.values(), key=lambda prefix: prefix.shared_length(token_ids, ends), default=None)
        shared = best.shared_length(token_ids, ends) if best else 0
        if best is None or shared == 0:
            return None, 0
        self._prefixes.move_to_end(best.token_ids)
        return best, shared

    def keep(
        self, token_ids: Sequence[int], ends: Sequence[int], bytes_per_token: int, copy: Callable[[int], Snapshot]
    ) -> None:
        """Keep a prefix, or its beginning, in place of those that it contains; nothing, where that is there already.

        Args:
            token_ids: the prefix's tokens.
            ends: where its blocks end.
            bytes_per_token: what a token's keys and values take.
            copy: makes the copy of that many first tokens; called once there is room for it, or not at all. What it
                raises is passed on, and the prefix is then not kept.
        """
        is_whole = len(token_ids) * bytes_per_token <= self.max_bytes
        length = self._make_room(token_ids, ends, bytes_per_token, is_whole=is_whole)
        if length:
            kept_ids, kept_ends = tuple(token_ids[:length]), tuple(end for end in ends if end <= length)
            self._add(Prefix(token_ids=kept_ids, ends=kept_ends, snapshot=copy(length), is_whole=is_whole))

    def _make_room(self, token_ids: Sequence[int], ends: Sequence[int], bytes_per_token: int, *, is_whole: bool) -> int:
        """Give up prefixes for another one; returns how much of it is to be kept, 0 where that brings nothing."""
        shared = [(prefix, prefix.shared_length(token_ids, ends)) for prefix in self._prefixes.values()]
        contained = [prefix for prefix, length in shared if length == len(prefix.token_ids)]
        room = self.max_bytes
        if not is_whole:
            room -= self._whole_nbytes - sum(prefix.snapshot.nbytes for prefix in contained if prefix.is_whole)
        length = max((end for end in ends if end * bytes_per_token <= room), default=0)
        if length <= max((length for _, length in shared), default=0):
            return 0
        for prefix in contained:
            self._remove(prefix)
        while self._nbytes + length * bytes_per_token > self.max_bytes:
            self._remove(next(prefix for prefix in self._prefixes.values() if is_whole or not prefix.is_whole))
        return length

    def _add(self, prefix: Prefix) -> None:
        self._prefixes[prefix.token_ids] = prefix
        self._count(prefix, prefix.snapshot.nbytes)

    def _remove(self, prefix: Prefix) -> None:
        del self._prefixes[prefix.token_ids]
        self._count(prefix, -prefix.snapshot.nbytes)

    def _count(self, prefix: Prefix, nbytes: int) -> None:
        self._nbytes += nbytes
        if prefix.is_whole:
            self._whole_nbytes += nbytes
