"""A pair as vLLM runs it: what both models are, checked before vLLM starts, and the arguments that start it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from ssd_engine.backends.vllm.compat import require_vllm
from ssd_engine.backends.vllm.merged import merged_draft
from ssd_engine.backends.vllm.requests import SHARED_ARG, SIGNALS_ARG
from ssd_engine.config import SSDConfig
from ssd_engine.errors import InvalidRequestError
from ssd_engine.models.checkpoints import (
    load_config,
    load_signals,
    load_tokenizer,
    require_same_tokens,
    stored_fingerprint,
)
from ssd_engine.models.memory import plan_positions, require_room, stored_bytes
from ssd_engine.models.pair import NO_ADAPTER, PairSpec
from ssd_engine.models.sizes import bytes_per_position, dtype_of
from ssd_engine.rule.draft_signals import FILE as SIGNALS_FILE
from ssd_engine.rule.draft_signals import DraftSignals
from ssd_engine.serving.intake import Intake, ModelFacts, end_of_sequence_ids

MAX_BATCH_SIZE = 64
"""Requests that decode together where nothing else is said."""
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
    def of(cls, spec: PairSpec) -> VllmPair:
        """Check a pair, given by its sources and settings (`resolve_spec`).

        Raises:
            InvalidRequestError: a setting that vLLM has no place for.
            ModelLoadError: vLLM or a model cannot be used, or does not fit in memory.
        """
        require_vllm()
        target, draft, config = str(spec.target), str(spec.draft), spec.settings
        if config.draft_system_prompt is not None:
            raise InvalidRequestError(
                f"draft_system_prompt={config.draft_system_prompt!r}: vLLM gives both models one prompt; leave it out, "
                "or use the transformers backend"
            )
        if config.num_draft_tokens == "auto":
            raise InvalidRequestError("num_draft_tokens='auto': vLLM drafts a fixed number of tokens; give one")
        tokenizer = load_tokenizer(target, spec.target_revision)
        beside = Path(draft if spec.draft_adapter in (None, NO_ADAPTER) else str(spec.draft_adapter))
        signals = load_signals(draft, spec.draft_adapter)
        configs = load_config(target, spec.target_revision), load_config(draft, spec.draft_revision)
        facts = ModelFacts.of(configs[0], tokenizer), ModelFacts.of(configs[1], tokenizer)
        sizes = [each.vocabulary_size for each in facts]
        size = min(sizes)
        require_same_tokens(tokenizer, load_tokenizer(draft, spec.draft_revision), size, "vLLM")
        # Embeddings may be padded to different sizes, and vLLM wants one.
        padded = None if sizes[0] == sizes[1] else sizes[0]
        merged = merged_draft(draft, spec.draft_adapter, spec.draft_revision, vocabulary_size=padded)
        # What is merged lies on this machine, where there are no revisions.
        draft_revision = spec.draft_revision if merged == draft else None
        ends = end_of_sequence_ids(generation_config(target, spec.target_revision), tokenizer)
        # vLLM refuses an end that the model cannot write.
        _require_fit(signals, configs[1], size, stored_fingerprint(merged))
        intake = Intake(*facts, frozenset(i for i in ends if i < size), signals)
        intake.require_signals(config)
        processes = spec.tensor_parallel_size or 1
        max_batch_size = spec.max_batch_size or MAX_BATCH_SIZE
        arguments = {
            "model": target,
            "revision": spec.target_revision,
            "tokenizer_revision": spec.target_revision,
            "dtype": spec.dtype or "auto",
            "generation_config": "vllm",  # a request's settings are its own, not the checkpoint's
            "tensor_parallel_size": processes,
            "pipeline_parallel_size": 1,  # vLLM drafts with a model on one stage only
            "max_num_seqs": max_batch_size,
            "enforce_eager": not (torch.cuda.is_available() if spec.compile is None else spec.compile),
            **_memory(configs, (target, merged), spec, intake.context_length, max_batch_size),
            # What follows is what the rule rests on.
            "worker_cls": _WORKER,
            "async_scheduling": False,
            "structured_outputs_config": {"backend": "guidance"},
            "speculative_config": {
                "method": "draft_model",
                "model": merged,
                "revision": draft_revision,
                "num_speculative_tokens": config.num_draft_tokens,
                "draft_sample_method": "probabilistic",
                "draft_tensor_parallel_size": processes,
            },
        }
        engine_args = dict(spec.engine_args or {})
        additional = engine_args.pop("additional_config", {})
        has_signals = (beside / SIGNALS_FILE).is_file()
        arguments["additional_config"] = {
            **additional,
            **({SIGNALS_ARG: str(beside)} if has_signals else {}),
            **({} if padded is None else {SHARED_ARG: size}),
        }
        if taken := sorted(arguments.keys() & engine_args.keys()):
            raise InvalidRequestError(
                f"engine_args={taken}: set by this backend; use its own options, or leave them out"
            )
        return cls(
            target=target,
            draft=merged,
            tokenizer=tokenizer,
            intake=intake,
            config=config,
            engine_args={**arguments, **engine_args},
        )


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


def generation_config(source: str, revision: str | None) -> GenerationConfig | None:
    """A model's settings for generation, if it has any."""
    try:
        config: GenerationConfig = GenerationConfig.from_pretrained(source, revision=revision)
    except OSError:
        return None
    return config


def _memory(
    configs: tuple[PreTrainedConfig, PreTrainedConfig],
    sources: tuple[str, str],
    spec: PairSpec,
    context_length: int | None,
    max_batch_size: int,
) -> dict[str, Any]:
    """Room for the key-value caches, and the longest sequence; on a GPU vLLM knows better."""
    if torch.cuda.is_available():
        return {"max_model_len": spec.max_model_len, "kv_cache_memory_bytes": spec.kv_cache_bytes}
    require_room(sources, "cpu")
    per_position = sum(bytes_per_position(config, dtype_of(config, spec.dtype)) for config in configs)
    # While vLLM loads weights in its own type, the files that it reads them from are in memory too.
    weights = sum(
        int(stored_bytes(source) * (1 + dtype_of(config, spec.dtype).itemsize / dtype_of(config, None).itemsize))
        for source, config in zip(sources, configs, strict=True)
    )
    positions = plan_positions(
        per_position,
        max_batch_size,
        context_length,
        torch.device("cpu"),
        spec.kv_cache_bytes,
        reserved_bytes=weights,
    )
    longest = min(context_length or positions, positions)
    return {"max_model_len": spec.max_model_len or longest, "kv_cache_memory_bytes": positions * per_position}
