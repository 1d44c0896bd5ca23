"""TokenIndex: where a run of tokens has stood before, and so what may come after it now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

_LONGEST_RUN = 32
"""Tokens of a run that are compared."""
_MOST_PLACES = 8
"""Latest places of a pair of tokens that are looked at."""
_BREAK = -1
"""Stands between texts, which do not continue each other."""


class TokenIndex:
    """Texts in tokens, each pair of tokens with the places behind it."""

    def __init__(self, token_ids: Iterable[int] = ()) -> None:
        self._token_ids: list[int] = []
        self._places: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        self.extend(token_ids)

    def __len__(self) -> int:
        return len(self._token_ids)

    def extend(self, token_ids: Iterable[int]) -> None:
        """Let tokens follow."""
        known = self._token_ids
        for token_id in token_ids:
            known.append(token_id)
            if len(known) > 1:
                self._places[known[-2], token_id].append(len(known))

    def end_text(self) -> None:
        """What follows is another text."""
        self._token_ids.append(_BREAK)

    def find(self, run: Sequence[int], most: int) -> tuple[int, list[int]]:
        """Length of the longest end of `run` that stands somewhere in the texts, and at most `most` tokens after it.

        Of equally long ones the latest; an end of fewer than two tokens, or with nothing after it, is none.
        """
        best_length, best_place = 0, 0
        for place in reversed(self._places.get((run[-2], run[-1]), ())[-_MOST_PLACES:] if len(run) > 1 else ()):
            length = self._run_length(run, place)
            if length > best_length and place < len(self._token_ids) and self._token_ids[place] != _BREAK:
                best_length, best_place = length, place
        if not best_length:
            return 0, []
        following = self._token_ids[best_place : best_place + most]
        return best_length, following[: following.index(_BREAK)] if _BREAK in following else following

    def _run_length(self, run: Sequence[int], place: int) -> int:
        """Tokens before `place` that are the last ones of `run`; two are known to be."""
        length = 2
        longest = min(len(run), place, _LONGEST_RUN)
        while length < longest and self._token_ids[place - 1 - length] == run[-1 - length]:
            length += 1
        return length
