"""From two models in memory, or a pair's description, to a decoder in this process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ssd_engine.backends.transformers.decoder import make_decoder
from ssd_engine.bridge.between import bridge_between, vocabulary
from ssd_engine.config import SSDConfig
from ssd_engine.errors import InvalidRequestError
from ssd_engine.models.checkpoints import (
    LoadOptions,
    load_model,
    load_signals,
    load_tokenizers,
)
from ssd_engine.models.pair import PairSpec
from ssd_engine.rule.draft_signals import DraftSignals
from ssd_engine.serving.intake import Intake, ModelFacts, end_of_sequence_ids
from ssd_engine.serving.parts import MAX_WAITING, EngineParts

MAX_BATCH_SIZE = 8
PREFIX_CACHE_BYTES = 512 * 2**20


def transformers_parts(spec: PairSpec, signals: DraftSignals | None = None) -> EngineParts:
    """Load a pair, given by its sources and settings.

    Args:
        spec: the pair (`resolve_spec`).
        signals: what signals are read from the draft with; None: what lies beside its adapter.

    Raises:
        InvalidRequestError, ModelLoadError: a source or a setting that cannot be used.
    """
    target, draft = str(spec.target), str(spec.draft)
    options = LoadOptions.of(spec)
    # Tokenizers first: a wrong id is told in a second, before gigabytes are read.
    tokenizers = load_tokenizers(spec)
    signals = signals or load_signals(draft, spec.draft_adapter)
    # In a thread that ends: the pool of compute threads that loading leaves with its caller would compete with the
    # worker's own, and slow every pass on a CPU by a fifth.
    with ThreadPoolExecutor(1) as loading:
        # The small one first: what packing takes for a while comes on top of what is there already.
        draft_model = loading.submit(load_model, draft, options[1], spec.draft_adapter).result()
        target_model = loading.submit(load_model, target, options[0]).result()
    return parts_of_models(
        target_model,
        draft_model,
        *tokenizers,
        config=spec.settings,
        signals=signals,
        name=spec.title,
        max_batch_size=spec.max_batch_size,
        max_waiting=spec.max_waiting,
        kv_cache_bytes=spec.kv_cache_bytes,
        prefix_cache_bytes=spec.prefix_cache_bytes,
        compile=bool(spec.compile),
    )


def parts_of_models(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    draft_tokenizer: PreTrainedTokenizerBase | None,
    *,
    config: SSDConfig,
    signals: DraftSignals,
    name: str | None,
    max_batch_size: int | None,
    max_waiting: int | None,
    kv_cache_bytes: int | None,
    prefix_cache_bytes: int | None,
    compile: bool,
) -> EngineParts:
    """Make a decoder of models in memory. Arguments and errors are `SSDEngine`'s."""
    max_batch_size = MAX_BATCH_SIZE if max_batch_size is None else max_batch_size
    max_waiting = MAX_WAITING if max_waiting is None else max_waiting
    for option, value in (("max_batch_size", max_batch_size), ("max_waiting", max_waiting)):
        if value < 1:
            raise InvalidRequestError(f"{option}={value} answers nobody; use 1 or more")
    draft_tokenizer = draft_tokenizer or tokenizer
    facts = ModelFacts.of(target.config, tokenizer), ModelFacts.of(draft.config, draft_tokenizer)
    ends = [
        end_of_sequence_ids(model.generation_config, each.tokenizer)
        for model, each in zip((target, draft), facts, strict=True)
    ]
    sides = (vocabulary(each.tokenizer, each.vocabulary_size, ids) for each, ids in zip(facts, ends, strict=True))
    bridge = bridge_between(*sides)
    intake = Intake(*facts, ends[0], signals, bridge)
    intake.require_signals(config)
    with ThreadPoolExecutor(1) as setting_up:  # in a thread that ends: see above
        decoder = setting_up.submit(
            make_decoder,
            target,
            draft,
            eos_ids=intake.eos_ids,
            context_length=intake.context_length,
            max_batch_size=max_batch_size,
            kv_cache_bytes=kv_cache_bytes,
            prefix_cache_bytes=PREFIX_CACHE_BYTES if prefix_cache_bytes is None else prefix_cache_bytes,
            compile=compile,
            signals=signals,
            bridge=bridge,
        ).result()
    return EngineParts(
        intake=intake,
        decoder=decoder,
        tokenizer=tokenizer,
        name=name or f"{_short_name(target)} + {_short_name(draft)}",
        config=config,
        max_batch_size=max_batch_size,
        max_waiting=max_waiting,
    )


def _short_name(model: PreTrainedModel) -> str:
    return Path(model.config.name_or_path).name or type(model).__name__
