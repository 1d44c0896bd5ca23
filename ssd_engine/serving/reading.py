"""PromptReading: which prompts are read between two rounds, and how much of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

_SHARE = 0.5
"""Seconds of reading to a second of decoding, where streams are as many as unread prompts, or more."""
P = TypeVar("P")


class PromptReading:
    """Shares the time between streams and prompts.

    Where at least as many requests stream as wait to be read, reading takes at most half as long as decoding, so that
    the time between two pieces of a stream grows by half at most, taken over several rounds. Where more wait than
    stream, the few wait for the many: a part is read for each unread prompt to each stream.

    Every second part is of the oldest prompt, the others of the one that has least left: a short prompt of n parts
    waits for n parts of a long one, and no prompt for ever. Parts that follow one another are read together, as many as
    the decoder can; where nobody streams, never fewer.
    """

    def __init__(self, parts_at_once: int) -> None:
        """`parts_at_once`: how many the decoder reads in the time of fewer."""
        self._parts_at_once = parts_at_once
        self._debt = 0.0
        """Seconds of reading that decoding has not made up for."""
        self._is_paced = False
        self._takes_oldest = True

    def num_parts(self, num_unread: int, num_streaming: int) -> int:
        """Parts to read before the next round."""
        self._is_paced = num_streaming >= num_unread
        if self._is_paced and self._debt > 0:
            return 0
        return math.ceil(num_unread / num_streaming) if num_streaming else max(num_unread, self._parts_at_once)

    def choose(self, prompts: Sequence[P], num_unread_parts: Callable[[P], int], most: int) -> list[P]:
        """Those of the unread prompts, oldest first, of which a part each is read next: at most `most`, together.

        A prompt that is named twice is read on.
        """
        unread = {prompt: num_unread_parts(prompt) for prompt in prompts}
        chosen: list[P] = []
        while unread and len(chosen) < min(most, self._parts_at_once):
            prompt = next(iter(unread)) if self._takes_oldest else min(unread, key=unread.__getitem__)
            self._takes_oldest = not self._takes_oldest
            chosen.append(prompt)
            unread[prompt] -= 1
            if unread[prompt] == 0:
                del unread[prompt]
        return chosen

    def has_read(self, seconds: float) -> None:
        """Parts that were read together took so long."""
        self._debt = self._debt + seconds if self._is_paced else 0.0

    def has_decoded(self, seconds: float) -> None:
        """A round took so long."""
        self._debt = max(self._debt - _SHARE * seconds, 0.0)
