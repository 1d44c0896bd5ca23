"""Request: one prompt on its way through the scheduler, and how its rounds become what its caller is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ssd_engine.answers.answer import Answer
from ssd_engine.answers.answer_format import ReasoningStage
from ssd_engine.answers.result import Piece, Timings
from ssd_engine.config import GenerationParams, SSDConfig
from ssd_engine.errors import RequestTimeoutError, SSDError

if TYPE_CHECKING:
    from ssd_engine.grammars.guide import Guide
    from ssd_engine.rule.choice import Choice
    from ssd_engine.rule.signals import Look

Event = Piece | BaseException
"""What a caller is told: a piece, of which the last has the result, or the exception that ended the request."""


@dataclass(frozen=True)
class Round:
    """What one round added to an answer."""

    choices: Sequence[Choice]
    cached_prompt_tokens: int
    timings: Timings
    """Of the sequence so far."""
    beginning: Sequence[Look] = ()
    """With the first round: what signals said over a given beginning."""
    num_drafted: int | None = None
    """Tokens drafted so far; None where it is not known."""


@dataclass(eq=False)
class Request:
    """A prompt in each model's tokens, how to answer it, and where the pieces go.

    `deliver` is called with pieces, the last of which has the result, or with one exception. It must not block: the
    thread that calls it is the worker's, or that of the request's own callback.
    """

    target_ids: Sequence[int]
    draft_ids: Sequence[int]
    params: GenerationParams
    config: SSDConfig
    guide: Guide | None
    answer: Answer
    deliver: Callable[[Event], None]
    num_given: int = 0
    """Tokens at the end of the draft's prompt that are a given beginning whose risk signals are to tell."""
    reasoning_stage: ReasoningStage = "over"
    """How far the model's reasoning is as the answer begins."""
    submitted: float = field(default_factory=time.perf_counter)
    """When it was put in line."""
    is_cancelled: bool = False

    @property
    def elapsed(self) -> float:
        """Seconds since the submission."""
        return time.perf_counter() - self.submitted

    @property
    def remaining(self) -> float | None:
        """Seconds that are left of the timeout, not below 0; None where there is none."""
        return None if self.params.timeout is None else max(self.params.timeout - self.elapsed, 0.0)

    @property
    def timeout_error(self) -> SSDError | None:
        """What the caller is told where the request has run out of time and was not cancelled."""
        if self.is_cancelled or self.remaining is None or self.remaining > 0:
            return None
        return RequestTimeoutError(
            f"the request took longer than its timeout of {self.params.timeout} s; allow more time or fewer "
            "max_new_tokens"
        )

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits for more: it was cancelled, or its time has run out."""
        return self.is_cancelled or self.timeout_error is not None

    def events(self, added: Round) -> list[Event]:
        """What a round adds to the answer; whatever goes wrong here ends this one request."""
        try:
            if added.beginning:
                self.answer.begin(added.beginning)
            piece = self.answer.add_round(added.choices)
            self.answer.trace.num_drafted = added.num_drafted
            if self.answer.error is not None:
                return [piece, self.answer.error]
            timings = added.timings
            timings.total = self.elapsed
            timings.first_token = timings.first_token or timings.total
            if not self.answer.is_finished:
                return [piece]
            result = self.answer.result(len(self.target_ids), added.cached_prompt_tokens, replace(timings))
            return [replace(piece, result=result)]
        except Exception as error:
            if not isinstance(error, StopIteration | StopAsyncIteration):  # these mean something else in a generator
                return [error]
            return [_ended_by(error)]
        except BaseException as error:  # of a callback: it is not for the thread that happens to run it
            return [_ended_by(error)]


def _ended_by(error: BaseException) -> SSDError:
    """What is told in the place of an exception that cannot be passed on as it is."""
    ended = SSDError(
        f"the answer was ended by {type(error).__name__}: {error}; raise another Exception to end one request, and end "
        "the program elsewhere"
    )
    ended.__cause__ = error
    return ended


def is_last(event: Event) -> bool:
    """Whether nothing follows it."""
    return isinstance(event, BaseException) or event.result is not None
