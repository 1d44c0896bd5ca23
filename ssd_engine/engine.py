"""SSDEngine: what the integrations and the command line talk to."""

from __future__ import annotations

import asyncio
import queue
import weakref
from collections.abc import AsyncGenerator, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ssd_engine.answers.result import GenerationResult, Piece
from ssd_engine.config import Backend, GenerationParams, SSDConfig
from ssd_engine.errors import EngineBusyError, InvalidRequestError
from ssd_engine.models.presets import default_preset, get_preset, title
from ssd_engine.prompts.prompt import Prompt, Tools
from ssd_engine.rule.draft_signals import DraftSignals
from ssd_engine.serving.decoder import Decoder
from ssd_engine.serving.delivery import Deliver, Line, apieces_of, into_loop, pieces_of, results_of
from ssd_engine.serving.intake import Intake, ModelFacts, end_of_sequence_ids
from ssd_engine.serving.request import Event, Request
from ssd_engine.serving.scheduler import Scheduler

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_BATCH_SIZE = 8
MAX_WAITING = 16_384
PREFIX_CACHE_BYTES = 512 * 2**20


class SSDEngine:
    """Answers prompts with a target model and a small safe draft, by Speculative Safety-Aware Decoding.

    Safe to call from any number of threads and tasks: one worker thread owns the models and decodes up to
    `max_batch_size` requests together, the others wait in the order of their arrival. Usable as a context manager;
    `close()` frees the models. It answers in the process that made it: in a forked child it is closed.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        draft: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        draft_tokenizer: PreTrainedTokenizerBase | None = None,
        config: SSDConfig | None = None,
        *,
        signals: DraftSignals | None = None,
        name: str | None = None,
        max_batch_size: int = MAX_BATCH_SIZE,
        max_waiting: int = MAX_WAITING,
        kv_cache_bytes: int | None = None,
        prefix_cache_bytes: int = PREFIX_CACHE_BYTES,
        compile: bool = False,
    ) -> None:
        """Make an engine of models in memory.

        Args:
            target: the large model, on any device, in any dtype.
            draft: the small safe model, of the same vocabulary.
            tokenizer: the target's tokenizer.
            draft_tokenizer: the draft's own, with its own chat template; None: the target's serves both.
            config: settings of the algorithm.
            signals: what signals are read from the draft with; None: only those that need nothing can be used.
            name: what responses call the pair; None: taken from the models.
            max_batch_size: most requests that decode together.
            max_waiting: most requests that wait for a place; further ones raise `EngineBusyError`.
            kv_cache_bytes: memory for the key-value caches of both models, which never grow. None: room for
                `max_batch_size` sequences of 4,096 tokens and for one of 32,768, or half of the memory that is
                available, whichever is less. A request that finds no room waits.
            prefix_cache_bytes: most memory that each model's kept prompt prefixes may take.
            compile: decode through `torch.compile`. Tokens come faster once the prompt has been read, and the engine
                is ready later: by half a minute, or a minute and more on a machine that has not compiled this pair
                before. Needs torch 2.13, a C++ compiler (on a GPU, Triton) and models without sliding windows.

        Raises:
            InvalidRequestError: `max_batch_size` or `max_waiting` is below 1, or `config` uses signals that are not
                there.
            VocabularyMismatchError: a token id means two different tokens.
            ModelLoadError: a model keeps a state that cannot be rolled back or cannot be compiled, the caches do not
                fit in memory, or `signals` are of another draft.
        """
        from ssd_engine.backends.transformers.decoder import make_decoder
        from ssd_engine.models.checkpoints import require_same_tokens, shared_vocabulary_size

        for option, value in (("max_batch_size", max_batch_size), ("max_waiting", max_waiting)):
            if value < 1:
                raise InvalidRequestError(f"{option}={value} answers nobody; use 1 or more")
        draft_tokenizer = draft_tokenizer or tokenizer
        require_same_tokens(tokenizer, draft_tokenizer, shared_vocabulary_size(target, draft))
        facts = ModelFacts.of(target.config, tokenizer), ModelFacts.of(draft.config, draft_tokenizer)
        signals = signals or DraftSignals()
        intake = Intake(*facts, end_of_sequence_ids(target.generation_config, tokenizer), signals)
        intake.require_signals(config or SSDConfig())
        # In a thread that ends: see `from_pretrained`.
        with ThreadPoolExecutor(1) as setting_up:
            decoder = setting_up.submit(
                make_decoder,
                target,
                draft,
                eos_ids=intake.eos_ids,
                context_length=intake.context_length,
                max_batch_size=max_batch_size,
                kv_cache_bytes=kv_cache_bytes,
                prefix_cache_bytes=prefix_cache_bytes,
                compile=compile,
                signals=signals,
            ).result()
        name = name or f"{_short_name(target)} + {_short_name(draft)}"
        self._assemble(intake, decoder, tokenizer, config, name, max_batch_size, max_waiting)

    def _assemble(
        self,
        intake: Intake,
        decoder: Decoder[Any],
        tokenizer: PreTrainedTokenizerBase,
        config: SSDConfig | None,
        name: str,
        max_batch_size: int,
        max_waiting: int,
    ) -> None:
        """Put the parts together, whichever backend the decoder is of."""
        self.config = config or SSDConfig()
        self.name = name
        self.tokenizer = tokenizer
        self._intake = intake
        self._cache_positions = decoder.positions
        scheduler = Scheduler(decoder, max_batch_size, max_waiting)
        self._scheduler: Line = scheduler
        self._close = weakref.finalize(self, scheduler.close)

    @classmethod
    def from_pretrained(
        cls,
        target: str | Path,
        draft: str | Path,
        draft_adapter: str | Path | None = None,
        config: SSDConfig | None = None,
        dtype: str | torch.dtype = "auto",
        device: str = "auto",
        *,
        device_map: str | dict[str, Any] | None = None,
        target_quantization: str | None = None,
        draft_quantization: str | None = None,
        backend: Backend = "transformers",
        **options: Any,
    ) -> Self:
        """Load a pair.

        Args:
            target, draft: model hub id, folder with safetensors weights, or GGUF file.
            draft_adapter: PEFT adapter (hub id or folder) to merge into the draft; "none" is as good as None. What lies
                beside it to read signals with (`signals.safetensors`) is loaded too; without an adapter, what lies in
                the draft's folder.
            config: settings of the algorithm.
            dtype: "auto" (the checkpoint's own), "float32", "bfloat16", "float16" or a torch dtype.
            device: "auto" (an accelerator where there is one), "cpu", "cuda", "cuda:1", ...
            device_map: as transformers takes it; overrides `device`.
            target_quantization, draft_quantization: "int8" on the CPU, or None.
            backend: "transformers" runs the models in this process. "vllm" runs them in vLLM's, with its paged
                caches, continuous batching and parallelism; device and quantization are then vLLM's to choose, and
                both models get one prompt, written by the target's template.
            options: `name`, `max_batch_size`, `max_waiting`, `kv_cache_bytes`, `prefix_cache_bytes` and `compile`, as
                for `SSDEngine()`; with vLLM the fields of `VllmOptions`.

        Raises:
            ModelLoadError: a source cannot be found, reached or used, or vLLM is missing or of another version;
                `VocabularyMismatchError` is one kind of it.
            InvalidRequestError: an option that the backend does not have.
        """
        if backend == "vllm":
            given = {
                "device": device != "auto",
                "device_map": device_map is not None,
                "target_quantization": target_quantization is not None,
                "draft_quantization": draft_quantization is not None,
            }
            if not_there := [option for option, is_given in given.items() if is_given]:
                raise InvalidRequestError(
                    f"{', '.join(not_there)}: not with backend='vllm', which chooses it; leave out"
                )
            return cls._from_vllm(target, draft, draft_adapter, config, dtype, options)
        if backend != "transformers":
            raise InvalidRequestError(f"backend={backend!r} is unknown; use 'transformers' or 'vllm'")
        from ssd_engine.models.checkpoints import (
            LoadOptions,
            load_model,
            load_signals,
            load_tokenizer,
            require_same_tokens,
        )

        sides = [
            LoadOptions(dtype=dtype, device=device, device_map=device_map, quantization=quantization)
            for quantization in (target_quantization, draft_quantization)
        ]
        # Tokenizers first: a wrong id or family is told in a second, before gigabytes are read.
        tokenizer, draft_tokenizer = load_tokenizer(target), load_tokenizer(draft)
        require_same_tokens(tokenizer, draft_tokenizer, min(len(tokenizer), len(draft_tokenizer)))
        options.setdefault("signals", load_signals(draft, draft_adapter))
        # In a thread that ends: the pool of compute threads that loading leaves with its caller would compete with the
        # worker's own, and slow every pass on a CPU by a fifth.
        with ThreadPoolExecutor(1) as loading:
            target_model = loading.submit(load_model, target, sides[0]).result()
            draft_model = loading.submit(load_model, draft, sides[1], draft_adapter).result()
        options.setdefault("name", f"{Path(target).stem} + {Path(draft).stem}")
        return cls(target_model, draft_model, tokenizer, draft_tokenizer, config, **options)

    @classmethod
    def _from_vllm(
        cls,
        target: str | Path,
        draft: str | Path,
        draft_adapter: str | Path | None,
        config: SSDConfig | None,
        dtype: str | torch.dtype,
        options: dict[str, Any],
    ) -> Self:
        from ssd_engine.backends.vllm.options import VllmOptions
        from ssd_engine.backends.vllm.pair import VllmPair

        name = options.pop("name", None) or f"{Path(target).stem} + {Path(draft).stem}"
        settings = VllmOptions(**options)
        pair = VllmPair.of(target, draft, draft_adapter, config or SSDConfig(), dtype, settings)
        engine = cls.__new__(cls)
        decoder = pair.make_decoder()
        engine._assemble(
            pair.intake,
            decoder,
            pair.tokenizer,
            pair.config,
            name,
            settings.max_batch_size,
            settings.max_waiting,
        )
        return engine

    @classmethod
    def from_preset(cls, name: str | None = None, *, config: SSDConfig | None = None, **options: Any) -> Self:
        """Load a named pair (`ssd models list`), fetching its weights once.

        Args:
            name: the pair; None: the one that the environment variable SSD_PRESET names, or the default.
            config: settings of the algorithm; None: the preset's, which differ with its own adapter and without.
            options: `from_pretrained`'s. Without `draft_adapter` the draft gets the preset's safety adapter, if it has
                one; "none" leaves the draft as its makers published it.
        """
        from ssd_engine.models.resolve import resolve_pair

        preset = get_preset(name or default_preset())
        options.setdefault("name", f"{title(preset.target)} + {title(preset.draft)}")
        adapter = options.get("draft_adapter")
        options["draft_adapter"] = adapter or preset.draft_adapter
        target, draft = resolve_pair(preset)
        return cls.from_pretrained(target, draft, config=config or preset.config_for(adapter), **options)

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
        return pieces_of(self._scheduler, request, events)

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
        async with aclosing(apieces_of(self._scheduler, request, events)) as pieces:
            async for piece in pieces:
                yield piece

    def batch(
        self, prompts: Sequence[Prompt], params: GenerationParams | None = None, *, tools: Tools | None = None
    ) -> list[GenerationResult | Exception]:
        """Answer several prompts together; the results stand in the order of the prompts.

        A prompt that fails has its exception in the place of a result; the others are answered all the same.
        """
        return results_of(self._scheduler, [partial(self._request, prompt, params, None, tools) for prompt in prompts])

    async def abatch(
        self, prompts: Sequence[Prompt], params: GenerationParams | None = None, *, tools: Tools | None = None
    ) -> list[GenerationResult | Exception]:
        """`batch` for an event loop."""
        places, turn = asyncio.Semaphore(self._scheduler.batch_limit), asyncio.Lock()

        async def answer(prompt: Prompt) -> GenerationResult | Exception:
            async with places:
                while True:
                    try:
                        return await self.agenerate(prompt, params, tools=tools)
                    except EngineBusyError as error:  # the line is full of others' requests
                        async with turn:
                            if not await asyncio.to_thread(self._scheduler.wait_for_place, 1.0):
                                return error
                    except Exception as error:
                        return error

        return await asyncio.gather(*map(answer, prompts))

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

    @property
    def is_closed(self) -> bool:
        """Whether it answers no more: closed, failed, or made before this process was forked."""
        return self._scheduler.is_closed

    @property
    def num_running(self) -> int:
        """Requests that are being answered, at most `max_batch_size`."""
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._scheduler.num_waiting

    @property
    def is_idle(self) -> bool:
        """Whether no request waits or runs."""
        return self.num_waiting + self.num_running == 0

    def close(self) -> None:
        """End what is running and free the models; later requests raise `EngineClosedError`. Closing twice is fine."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(
        self,
        prompt: Prompt,
        params: GenerationParams | None,
        draft_prompt: Prompt | None,
        tools: Tools | None,
        deliver: Deliver,
    ) -> Request:
        """Check and encode a request; all that is wrong with it is raised here."""
        if (error := self._scheduler.closed_error) is not None:
            raise error
        params = params or GenerationParams()
        config = params.ssd or self.config
        return self._intake.request(prompt, draft_prompt, params, config, tools, self._cache_positions, deliver)


def _short_name(model: PreTrainedModel) -> str:
    return Path(model.config.name_or_path).name or type(model).__name__
