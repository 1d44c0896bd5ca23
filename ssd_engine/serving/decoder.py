"""Decoder: what a backend gives the scheduler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from ssd_engine.answers.result import Timings
from ssd_engine.config import GenerationParams, SSDConfig

if TYPE_CHECKING:
    from ssd_engine.grammars.guide import Guide
    from ssd_engine.rule.choice import Choice
    from ssd_engine.rule.signals import Look


class DecoderError(Exception):
    """A decoder can decode no more, whatever it is asked: the engine ends."""


class DecodedSequence(Protocol):
    """A sequence that a backend is decoding."""

    timings: Timings

    @property
    def cached_prompt_tokens(self) -> int:
        """Tokens of the prompt that were reused instead of read."""

    @property
    def num_drafted(self) -> int | None:
        """Tokens drafted so far, accepted or not; None where it is not known."""

    @property
    def num_unread_parts(self) -> int:
        """Parts of the prompt that `read_prompts` has still to read."""

    def take_beginning(self) -> Sequence[Look]:
        """What signals said over a given beginning, once its prompt has been read; nothing at later calls."""


S = TypeVar("S", bound=DecodedSequence)


class Decoder(Protocol[S]):
    """What a backend gives the scheduler. Any of its methods may raise `DecoderError`."""

    def open(
        self,
        target_ids: Sequence[int],
        draft_ids: Sequence[int],
        params: GenerationParams,
        config: SSDConfig,
        guide: Guide | None,
        num_given: int,
    ) -> S | None:
        """Begin an answer; None while there is no room for it.

        The last `num_given` of `draft_ids` are a given beginning whose risk signals are to tell.
        """

    def close(self, sequence: S) -> None:
        """Free what a sequence holds."""

    @property
    def positions(self) -> int:
        """Most token positions that one sequence can have."""

    def shut_down(self) -> None:
        """Let go of the models; nothing is asked of the decoder afterwards."""

    @property
    def parts_at_once(self) -> int:
        """Parts of prompts, the same one's or several ones', that are read together in little more time than fewer."""

    def read_prompts(self, sequences: Sequence[S]) -> Mapping[S, Exception]:
        """Read a part of each prompt, short enough for others to wait for; a sequence that is named twice is read on.

        Some may be left for later. Returns what went wrong with one of them alone.
        """

    def round(self, sequences: Sequence[S]) -> list[list[Choice] | Exception]:
        """Advance sequences whose prompts have been read: new tokens for each, or what went wrong with it alone."""
