"""A pair as vLLM runs it: what both models are, checked before vLLM starts, and the arguments that start it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from ssd_engine.backends.vllm.compat import require_vllm
from ssd_engine.backends.vllm.merged import merged_draft
from ssd_engine.backends.vllm.options import VllmOptions
from ssd_engine.backends.vllm.requests import SIGNALS_ARG
from ssd_engine.config import SSDConfig
from ssd_engine.errors import InvalidRequestError, ModelLoadError, VocabularyMismatchError
from ssd_engine.models.checkpoints import (
    NO_ADAPTER,
    load_signals,
    load_tokenizer,
    require_same_tokens,
    stored_fingerprint,
)
from ssd_engine.models.memory import plan_positions, require_room
from ssd_engine.rule.draft_signals import FILE as SIGNALS_FILE
from ssd_engine.rule.draft_signals import DraftSignals
from ssd_engine.serving.intake import Intake, ModelFacts, end_of_sequence_ids

if TYPE_CHECKING:
    from ssd_engine.backends.vllm.decoder import VllmDecoder

_WORKER = "ssd_engine.backends.vllm.internals.SSDWorker"


@dataclass(frozen=True, kw_only=True)
class VllmPair:
    """Target and draft, and how vLLM is to run them."""

    target: str
    draft: str
    """A folder or hub id; an adapter is merged into it."""
    tokenizer: PreTrainedTokenizerBase
    intake: Intake
    config: SSDConfig
    engine_args: dict[str, Any]
    """Arguments of vLLM's `EngineArgs`."""

    @property
    def num_draft_tokens(self) -> int:
        """Tokens drafted in a round; `of` takes no other than a fixed number."""
        return int(self.config.num_draft_tokens)

    @classmethod
    def of(
        cls,
        target: str | Path,
        draft: str | Path,
        draft_adapter: str | Path | None,
        config: SSDConfig,
        dtype: str | torch.dtype,
        options: VllmOptions,
    ) -> VllmPair:
        """Check a pair.

        Raises:
            InvalidRequestError: a setting that vLLM has no place for.
            ModelLoadError: vLLM or a model cannot be used, or does not fit in memory.
        """
        require_vllm()
        if config.draft_system_prompt is not None:
            raise InvalidRequestError(
                f"draft_system_prompt={config.draft_system_prompt!r}: vLLM gives both models one prompt; leave it out, "
                "or use the transformers backend"
            )
        if config.num_draft_tokens == "auto":
            raise InvalidRequestError("num_draft_tokens='auto': vLLM drafts a fixed number of tokens; give one")
        tokenizer = load_tokenizer(target)
        beside = Path(draft if draft_adapter in (None, NO_ADAPTER) else draft_adapter)
        signals = load_signals(draft, draft_adapter)
        draft = merged_draft(draft, draft_adapter)
        configs = _config(target), _config(draft)
        facts = ModelFacts.of(configs[0], tokenizer), ModelFacts.of(configs[1], tokenizer)
        if facts[0].vocabulary_size != facts[1].vocabulary_size:
            raise VocabularyMismatchError(
                f"the target has {facts[0].vocabulary_size} token ids and the draft {facts[1].vocabulary_size}; vLLM "
                "needs equal numbers: use another draft, or the transformers backend"
            )
        require_same_tokens(tokenizer, load_tokenizer(draft), len(tokenizer))
        ends = end_of_sequence_ids(generation_config(target), tokenizer)
        # vLLM refuses an end that the model cannot write.
        size = facts[0].vocabulary_size
        _require_fit(signals, configs[1], size, stored_fingerprint(draft))
        intake = Intake(*facts, frozenset(i for i in ends if i < size), signals)
        intake.require_signals(config)
        arguments = {
            "model": str(target),
            "dtype": dtype,
            "generation_config": "vllm",  # a request's settings are its own, not the checkpoint's
            "tensor_parallel_size": options.tensor_parallel_size,
            "pipeline_parallel_size": options.pipeline_parallel_size,
            "max_num_seqs": options.max_batch_size,
            "enforce_eager": not (torch.cuda.is_available() if options.compile is None else options.compile),
            **_memory(configs, (str(target), draft), dtype, intake.context_length, options),
            # What follows is what the rule rests on.
            "worker_cls": _WORKER,
            "async_scheduling": False,
            "structured_outputs_config": {"backend": "guidance"},
            "speculative_config": {
                "method": "draft_model",
                "model": draft,
                "num_speculative_tokens": config.num_draft_tokens,
                "draft_sample_method": "probabilistic",
                "draft_tensor_parallel_size": options.tensor_parallel_size,
            },
        }
        engine_args = dict(options.engine_args)
        additional = engine_args.pop("additional_config", {})
        has_signals = (beside / SIGNALS_FILE).is_file()
        arguments["additional_config"] = {**additional, **({SIGNALS_ARG: str(beside)} if has_signals else {})}
        if taken := sorted(arguments.keys() & engine_args.keys()):
            raise InvalidRequestError(
                f"engine_args={taken}: set by this backend; use its own options, or leave them out"
            )
        return cls(
            target=str(target),
            draft=draft,
            tokenizer=tokenizer,
            intake=intake,
            config=config,
            engine_args={**arguments, **engine_args},
        )

    def make_decoder(self) -> VllmDecoder:
        """Start vLLM."""
        from ssd_engine.backends.vllm.decoder import VllmDecoder

        return VllmDecoder(self)


def _config(source: str | Path) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(str(source), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"model {str(source)!r} has no configuration that can be read: {error}") from error
    return config


def _require_fit(
    signals: DraftSignals, config: PreTrainedConfig, vocabulary_size: int, fingerprint: str | None
) -> None:
    """Raise `ModelLoadError` where signals were not made for a draft of that kind."""
    text = config.get_text_config()
    signals.require_fit(
        hidden_size=text.hidden_size,
        num_layers=text.num_hidden_layers,
        vocabulary_size=vocabulary_size,
        fingerprint=fingerprint,
    )


def generation_config(source: str | Path) -> GenerationConfig | None:
    """A model's settings for generation, if it has any."""
    try:
        config: GenerationConfig = GenerationConfig.from_pretrained(str(source))
    except OSError:
        return None
    return config


def _memory(
    configs: tuple[PreTrainedConfig, PreTrainedConfig],
    sources: tuple[str, str],
    dtype: str | torch.dtype,
    context_length: int | None,
    options: VllmOptions,
) -> dict[str, Any]:
    """Room for the key-value caches, and the longest sequence; on a GPU vLLM knows better."""
    if torch.cuda.is_available():
        return {"max_model_len": options.max_model_len, "kv_cache_memory_bytes": options.kv_cache_bytes}
    require_room(sources, "cpu")
    per_position = sum(_bytes_per_position(config, dtype) for config in configs)
    positions = plan_positions(
        per_position, options.max_batch_size, context_length, torch.device("cpu"), options.kv_cache_bytes
    )
    longest = min(context_length or positions, positions)
    return {"max_model_len": options.max_model_len or longest, "kv_cache_memory_bytes": positions * per_position}


def _bytes_per_position(config: PreTrainedConfig, dtype: str | torch.dtype) -> int:
    """Keys and values of one token in all layers."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    stored = text.dtype if dtype == "auto" else getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return 2 * int(text.num_hidden_layers * heads * size * (stored or torch.float32).itemsize)
