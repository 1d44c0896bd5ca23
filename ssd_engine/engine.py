"""Engine: what the integrations and the command line talk to."""

from __future__ import annotations

import asyncio
import queue
import weakref
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Self

from ssd_engine.answers.result import GenerationResult, Piece
from ssd_engine.config import GenerationParams, SSDConfig
from ssd_engine.errors import EngineBusyError
from ssd_engine.prompts.prompt import Prompt, Tools
from ssd_engine.serving.delivery import Deliver, Line, apieces_of, into_loop, pieces_of, results_of
from ssd_engine.serving.request import Event, Request


class Engine(ABC):
    """Answers prompts. Safe to call from any number of threads and tasks, and usable as a context manager.

    A kind of engine says how a request is checked (`_checked`), where it is put in line, and how the target reads text;
    the ways to ask are the same for all.
    """

    def __init__(self, line: Line, *, name: str, config: SSDConfig) -> None:
        """Put an engine in front of a line.

        Args:
            line: where requests are answered; it is closed with the engine.
            name: what responses call the pair.
            config: settings of requests that have none of their own.
        """
        self._line = line
        self.name = name
        self.config = config
        self._close = weakref.finalize(self, line.close)

    def _request(
        self,
        prompt: Prompt,
        params: GenerationParams | None,
        draft_prompt: Prompt | None,
        tools: Tools | None,
        deliver: Deliver,
    ) -> Request:
        """A request whose pieces go to `deliver`; what can be known to be wrong with it is raised here."""
        if (error := self._line.closed_error) is not None:
            raise error
        params = params or GenerationParams()
        return self._checked(prompt, params, params.ssd or self.config, draft_prompt, tools, deliver)

    @abstractmethod
    def _checked(
        self,
        prompt: Prompt,
        params: GenerationParams,
        config: SSDConfig,
        draft_prompt: Prompt | None,
        tools: Tools | None,
        deliver: Deliver,
    ) -> Request:
        """Check a request to an engine that is open; `config` are the settings that hold for it."""

    @abstractmethod
    def count_tokens(self, prompt: Prompt, *, tools: Tools | None = None) -> int:
        """Tokens of `prompt` as the target reads it, template included; also of one that is too long to be answered."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The target's ids of a text, without what stands at the beginning of a prompt."""

    @property
    @abstractmethod
    def context_length(self) -> int | None:
        """Most tokens, prompt and answer together, that both models can see; None where neither names a limit."""

    def generate(
        self,
        prompt: Prompt,
        params: GenerationParams | None = None,
        draft_prompt: Prompt | None = None,
        *,
        tools: Tools | None = None,
    ) -> GenerationResult:
        """Answer one prompt.

        Args:
            prompt: messages (`{"role": ..., "content": ...}`), plain text (encoded without a chat template), or
                token ids, used as they are.
            params: settings of the request.
            draft_prompt: the same kinds, for the draft alone; None: `prompt`, through the draft's own template.
            tools: OpenAI-style tool specifications, put into both prompts.

        Raises:
            InvalidRequestError: the prompt cannot be used; `ContextLengthError` where it is too long.
            RequestTimeoutError: `params.timeout` ran out; it counts from the submission.
            EngineBusyError: `max_waiting` requests wait already.
            EngineClosedError: the engine is closed, or its worker has failed.
        """
        for piece in self.stream(prompt, params, draft_prompt, tools=tools):
            last = piece
        assert last.result is not None
        return last.result

    def stream(
        self,
        prompt: Prompt,
        params: GenerationParams | None = None,
        draft_prompt: Prompt | None = None,
        *,
        tools: Tools | None = None,
    ) -> Generator[Piece, None, None]:
        """Answer one prompt piece by piece, one piece a round; the last has `result`.

        Closing the iterator stops the decoding within one round. Arguments and errors are `generate`'s.
        """
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        request = self._request(prompt, params, draft_prompt, tools, events.put)
        return pieces_of(self._line, request, events)

    async def agenerate(
        self,
        prompt: Prompt,
        params: GenerationParams | None = None,
        draft_prompt: Prompt | None = None,
        *,
        tools: Tools | None = None,
    ) -> GenerationResult:
        """`generate` for an event loop; cancelling the task stops the decoding within one round."""
        async for piece in self.astream(prompt, params, draft_prompt, tools=tools):
            last = piece
        assert last.result is not None
        return last.result

    async def astream(
        self,
        prompt: Prompt,
        params: GenerationParams | None = None,
        draft_prompt: Prompt | None = None,
        *,
        tools: Tools | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """`stream` for an event loop; closing the iterator or cancelling the task stops within one round."""
        events: asyncio.Queue[Event] = asyncio.Queue()
        deliver = into_loop(asyncio.get_running_loop(), events)
        # Rendering and encoding a long prompt takes a while; the loop goes on meanwhile.
        request = await asyncio.to_thread(self._request, prompt, params, draft_prompt, tools, deliver)
        async with aclosing(apieces_of(self._line, request, events)) as pieces:
            async for piece in pieces:
                yield piece

    def batch(
        self, prompts: Sequence[Prompt], params: GenerationParams | None = None, *, tools: Tools | None = None
    ) -> list[GenerationResult | Exception]:
        """Answer several prompts together; the results stand in the order of the prompts.

        A prompt that fails has its exception in the place of a result; the others are answered all the same.
        """
        return results_of(self._line, [partial(self._request, prompt, params, None, tools) for prompt in prompts])

    async def abatch(
        self, prompts: Sequence[Prompt], params: GenerationParams | None = None, *, tools: Tools | None = None
    ) -> list[GenerationResult | Exception]:
        """`batch` for an event loop."""
        places, turn = asyncio.Semaphore(self._line.batch_limit), asyncio.Lock()

        async def answer(prompt: Prompt) -> GenerationResult | Exception:
            async with places:
                while True:
                    try:
                        return await self.agenerate(prompt, params, tools=tools)
                    except EngineBusyError as error:  # the line is full of others' requests
                        async with turn:
                            if not await asyncio.to_thread(self._line.wait_for_place, 1.0):
                                return error
                    except Exception as error:
                        return error

        return await asyncio.gather(*map(answer, prompts))

    @property
    def is_closed(self) -> bool:
        """Whether it answers no more: closed, failed, or made before this process was forked."""
        return self._line.is_closed

    @property
    def num_running(self) -> int:
        """Requests that are being answered, at most `max_batch_size`."""
        return self._line.num_running

    @property
    def num_waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._line.num_waiting

    @property
    def is_idle(self) -> bool:
        """Whether no request waits or runs."""
        return self.num_waiting + self.num_running == 0

    def close(self) -> None:
        """End what is running and let go of what it holds; later requests raise `EngineClosedError`.

        Closing twice is fine.
        """
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
