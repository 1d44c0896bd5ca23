"""Prompt prefixes whose keys and values are kept for the next request that starts with the same tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
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


@dataclass(frozen=True)
class Prefix:
    """A prefix that was read in blocks."""

    token_ids: tuple[int, ...]
    ends: tuple[int, ...]
    """Where its blocks end; the last is its length."""
    snapshot: Snapshot

    def shared_length(self, token_ids: Sequence[int], ends: Sequence[int]) -> int:
        """Length of the part that a prompt `token_ids`, to be read in blocks with `ends`, can reuse."""
        shared = start = 0
        for mine, other in zip(self.ends, ends, strict=False):
            if mine != other or self.token_ids[start:mine] != tuple(token_ids[start:mine]):
                break
            shared = start = mine
        return shared


class PrefixStore:
    """Bounded store of one model's prefixes; the least recently used go first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._prefixes: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()

    @property
    def nbytes(self) -> int:
        return sum(prefix.snapshot.nbytes for prefix in self._prefixes.values())

    def find(self, token_ids: Sequence[int], ends: Sequence[int]) -> tuple[Prefix | None, int]:
        """The prefix that shares most with a prompt, and how many tokens that is."""
        best = max(self._prefixes.values(), key=lambda prefix: prefix.shared_length(token_ids, ends), default=None)
        shared = best.shared_length(token_ids, ends) if best else 0
        if best is None or shared == 0:
            return None, 0
        self._prefixes.move_to_end(best.token_ids)
        return best, shared

    def add(self, prefix: Prefix) -> None:
        """Keep `prefix` in place of those that it contains."""
        for other in list(self._prefixes.values()):
            if other.shared_length(prefix.token_ids, prefix.ends) == len(other.token_ids):
                del self._prefixes[other.token_ids]
        self._prefixes[prefix.token_ids] = prefix
        while self.nbytes > self.max_bytes:
            self._prefixes.popitem(last=False)
