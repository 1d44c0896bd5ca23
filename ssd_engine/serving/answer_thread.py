"""AnswerThread: makes the pieces of one answer whose caller is asked about risk, apart from the engine's worker."""

from __future__ import annotations

import queue
import threading
from dataclasses import replace

from ssd_engine.serving.request import Request, Round, is_last


class AnswerThread:
    """Turns the rounds of one request into pieces, in a thread of its own, where the caller's `on_risk` can wait.

    Decoding goes on meanwhile, so a callback that is slow, or that asks the same engine, stops nobody; what was
    decoded past the end that it decides on is dropped.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._rounds: queue.SimpleQueue[Round | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._num_tokens = 0
        self._has_last_round = False
        self._has_ended = False

    @property
    def is_over(self) -> bool:
        """Whether no further round is needed."""
        return self._has_last_round or self._has_ended

    def add(self, added: Round) -> None:
        """Hand a round over."""
        if self._thread is None:
            thread = threading.Thread(target=self._work, name="ssd-answer", daemon=True)
            thread.start()
            self._thread = thread
        self._num_tokens += len(added.choices)
        self._has_last_round = self._request.answer.ends_at(added.choices[-1], self._num_tokens)
        self._rounds.put(replace(added, timings=replace(added.timings)))

    def stop(self) -> None:
        """Make nothing more of the rounds that are left."""
        self._has_ended = True
        self._rounds.put(None)

    def _work(self) -> None:
        while not (self._has_ended or self._request.is_abandoned) and (added := self._rounds.get()) is not None:
            for event in self._request.events(added):
                if is_last(event):
                    self._has_ended = True
                self._request.deliver(event)
