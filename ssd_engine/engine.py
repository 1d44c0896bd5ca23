"""Engine: what the integrations and the command line talk to, and SSDEngine, which answers with a pair of its own."""

from __future__ import annotations

import asyncio
import queue
import weakref
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ssd_engine.answers.result import GenerationResult, Piece
from ssd_engine.config import GenerationParams, SSDConfig
from ssd_engine.errors import EngineBusyError
from ssd_engine.models.pair import PairSpec
from ssd_engine.prompts.prompt import Prompt, Tools
from ssd_engine.rule.draft_signals import DraftSignals
from ssd_engine.serving.delivery import Deliver, Line, apieces_of, into_loop, pieces_of, results_of
from ssd_engine.serving.parts import EngineParts
from ssd_engine.serving.request import Event, Request
from ssd_engine.serving.scheduler import Scheduler

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Engine(ABC):
    """Answers prompts. Safe to call from any number of threads and tasks, and usable as a context manager.

    A kind of engine says how a request is checked (`_request`), where it is put in line, and how the target reads text;
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

    @abstractmethod
    def _request(
        self,
        prompt: Prompt,
        params: GenerationParams | None,
        draft_prompt: Prompt | None,
        tools: Tools | None,
        deliver: Deliver,
    ) -> Request:
        """Check a request whose pieces go to `deliver`; what can be known to be wrong with it is raised here."""

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


class SSDEngine(Engine):
    """Answers prompts with a target model and a small safe draft, by Speculative Safety-Aware Decoding.

    One worker thread owns the models and decodes up to `max_batch_size` requests together, the others wait in the
    order of their arrival. `close()` frees the models. It answers in the process that made it: in a forked child it is
    closed.
    """

    def __init__(
        self,
        target: PreTrainedModel | None = None,
        draft: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        draft_tokenizer: PreTrainedTokenizerBase | None = None,
        config: SSDConfig | None = None,
        *,
        signals: DraftSignals | None = None,
        name: str | None = None,
        max_batch_size: int | None = None,
        max_waiting: int | None = None,
        kv_cache_bytes: int | None = None,
        prefix_cache_bytes: int | None = None,
        compile: bool = False,
        parts: EngineParts | None = None,
    ) -> None:
        """Make an engine of models in memory, or of `parts` that a backend has put together.

        Args:
            target: the large model, on any device, in any dtype.
            draft: the small safe model, of the same vocabulary.
            tokenizer: the target's tokenizer.
            draft_tokenizer: the draft's own, with its own chat template; None: the target's serves both.
            config: settings of the algorithm.
            signals: what signals are read from the draft with; None: only those that need nothing can be used.
            name: what responses call the pair; None: taken from the models.
            max_batch_size: most requests that decode together; None: 8.
            max_waiting: most requests that wait for a place; further ones raise `EngineBusyError`. None: 16,384.
            kv_cache_bytes: memory for the key-value caches of both models, which never grow. None: room for
                `max_batch_size` sequences of 4,096 tokens and for one of 32,768, or half of the memory that is
                available, whichever is less. A request that finds no room waits.
            prefix_cache_bytes: most memory that each model's kept prompt prefixes may take; None: 512 MiB.
            compile: decode through `torch.compile`. Tokens come faster once the prompt has been read, and the engine
                is ready later: by half a minute, or a minute and more on a machine that has not compiled this pair
                before. Needs torch 2.13, a C++ compiler (on a GPU, Triton) and models without sliding windows.
            parts: instead of all of the above.

        Raises:
            InvalidRequestError: `max_batch_size` or `max_waiting` is below 1, or `config` uses signals that are not
                there.
            VocabularyMismatchError: a token id means two different tokens.
            ModelLoadError: a model keeps a state that cannot be rolled back or cannot be compiled, the caches do not
                fit in memory, or `signals` are of another draft.
        """
        if parts is None:
            if target is None or draft is None or tokenizer is None:
                raise TypeError("SSDEngine() takes target, draft and tokenizer, or parts")
            from ssd_engine.loading import parts_of_models

            parts = parts_of_models(
                target,
                draft,
                tokenizer,
                draft_tokenizer,
                config=config,
                signals=signals,
                name=name,
                max_batch_size=max_batch_size,
                max_waiting=max_waiting,
                kv_cache_bytes=kv_cache_bytes,
                prefix_cache_bytes=prefix_cache_bytes,
                compile=compile,
            )
        scheduler = Scheduler(parts.decoder, parts.max_batch_size, parts.max_waiting)
        super().__init__(scheduler, name=parts.name, config=parts.config)
        self.tokenizer = parts.tokenizer
        self._scheduler = scheduler
        self._intake = parts.intake
        self._cache_positions = parts.decoder.positions

    @classmethod
    def from_spec(cls, spec: PairSpec, *, signals: DraftSignals | None = None) -> Self:
        """Load a pair; the weights of a preset are fetched once.

        Args:
            spec: the pair, and how it is loaded.
            signals: what signals are read from the draft with; None: what lies beside its adapter (or, without an
                adapter, in its folder) as `signals.safetensors`.

        Raises:
            ModelLoadError: a source cannot be found, reached or used, or vLLM is missing or of another version;
                `VocabularyMismatchError` is one kind of it.
            InvalidRequestError: a setting that this pair or this backend cannot have.
        """
        from ssd_engine.loading import load_parts

        return cls(parts=load_parts(spec, signals))

    @classmethod
    def from_pretrained(
        cls,
        target: str | Path,
        draft: str | Path,
        draft_adapter: str | Path | None = None,
        config: SSDConfig | None = None,
        dtype: Any = "auto",
        device: str = "auto",
        *,
        signals: DraftSignals | None = None,
        **options: Any,
    ) -> Self:
        """Load two models.

        Args:
            target, draft: model hub id, folder with safetensors weights, or GGUF file.
            draft_adapter: PEFT adapter (hub id or folder) to merge into the draft; "none" is as good as None.
            config: settings of the algorithm.
            dtype: "auto" (the checkpoint's own), "float32", "bfloat16", "float16" or a torch dtype.
            device: "auto" (an accelerator where there is one), "cpu", "cuda", "cuda:1", ...
            signals: as for `from_spec`.
            options: other fields of `PairSpec`, such as `backend="vllm"`.

        Errors are `from_spec`'s.
        """
        spec = PairSpec(
            target=target,
            draft=draft,
            draft_adapter=draft_adapter,
            config=config,
            dtype=dtype,
            device=device,
            **options,
        )
        return cls.from_spec(spec, signals=signals)

    @classmethod
    def from_preset(cls, name: str | None = None, *, signals: DraftSignals | None = None, **options: Any) -> Self:
        """Load a named pair (`ssd models list`), fetching its weights once.

        Args:
            name: the pair; None: the one that the environment variable SSD_PRESET names, or the default.
            signals: as for `from_spec`.
            options: other fields of `PairSpec`. Without `config`, the preset's settings hold, which differ with its own
                adapter and without. Without `draft_adapter` the draft gets the preset's safety adapter, if it has one;
                "none" leaves the draft as its makers published it.

        Errors are `from_spec`'s.
        """
        return cls.from_spec(PairSpec(**options).replaced(preset=name), signals=signals)

    def count_tokens(self, prompt: Prompt, *, tools: Tools | None = None) -> int:
        """Tokens of `prompt` as the target reads it, template included; also of one that is too long to be answered."""
        return len(self._intake.prompt_ids(prompt, tools, GenerationParams()))

    def encode(self, text: str) -> list[int]:
        """The target's ids of a text, without what stands at the beginning of a prompt."""
        return self._intake.encode_plain(text)

    @property
    def context_length(self) -> int | None:
        """Most tokens, prompt and answer together, that both models can see; None where neither names a limit."""
        return self._intake.context_length

    def _request(
        self,
        prompt: Prompt,
        params: GenerationParams | None,
        draft_prompt: Prompt | None,
        tools: Tools | None,
        deliver: Deliver,
    ) -> Request:
        """Check and encode a request; all that is wrong with it is raised here."""
        if (error := self._line.closed_error) is not None:
            raise error
        params = params or GenerationParams()
        config = params.ssd or self.config
        return self._intake.request(prompt, draft_prompt, params, config, tools, self._cache_positions, deliver)
