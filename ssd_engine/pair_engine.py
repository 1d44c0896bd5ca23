"""SSDEngine: an engine with a pair of models of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ssd_engine.config import GenerationParams, SSDConfig
from ssd_engine.engine import Engine
from ssd_engine.models.pair import PairSpec
from ssd_engine.prompts.prompt import Prompt, Tools
from ssd_engine.rule.draft_signals import DraftSignals
from ssd_engine.serving.delivery import Deliver
from ssd_engine.serving.parts import EngineParts
from ssd_engine.serving.request import Request
from ssd_engine.serving.scheduler import Scheduler

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
            draft: the small safe model. Where its vocabulary is another, its word is carried over to the target's.
            tokenizer: the target's tokenizer.
            draft_tokenizer: the draft's own, with its own vocabulary or chat template; None: the target's serves both.
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
                before. Needs a C++ compiler (on a GPU, Triton) and models without sliding windows.
            parts: instead of all of the above.

        Raises:
            InvalidRequestError: `max_batch_size` or `max_waiting` is below 1, or `config` uses signals that are not
                there.
            VocabularyMismatchError: the vocabularies differ, and what the draft says cannot be carried over.
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
            target: the large model: hub id, folder with safetensors weights, or GGUF file.
            draft: the small safe model, given in the same way.
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

    def draft_token_ids(self, token_ids: Sequence[int]) -> list[int]:
        """What the draft reads for some of an answer's tokens: the same, where it has the target's vocabulary."""
        return self._intake.draft_token_ids(token_ids)

    @property
    def context_length(self) -> int | None:
        """Most tokens, prompt and answer together, that both models can see; None where neither names a limit."""
        return self._intake.context_length

    def _checked(
        self,
        prompt: Prompt,
        params: GenerationParams,
        config: SSDConfig,
        draft_prompt: Prompt | None,
        tools: Tools | None,
        deliver: Deliver,
    ) -> Request:
        """Check and encode a request; all that is wrong with it is raised here."""
        return self._intake.request(prompt, draft_prompt, params, config, tools, self._cache_positions, deliver)
