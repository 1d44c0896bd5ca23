"""From a pair's description to vLLM running it behind this package's scheduler."""

from __future__ import annotations

from ssd_engine.backends.vllm.decoder import VllmDecoder
from ssd_engine.backends.vllm.pair import VllmPair
from ssd_engine.models.pair import PairSpec
from ssd_engine.serving.parts import MAX_WAITING, EngineParts


def vllm_parts(spec: PairSpec) -> EngineParts:
    """Start vLLM with a pair, given by its sources and settings.

    Raises:
        InvalidRequestError, ModelLoadError: as `VllmPair.of`; vLLM does not start.
    """
    pair = VllmPair.of(spec)
    return EngineParts(
        intake=pair.intake,
        decoder=VllmDecoder(pair),
        tokenizer=pair.tokenizer,
        name=spec.title,
        config=pair.config,
        max_batch_size=pair.engine_args["max_num_seqs"],
        max_waiting=spec.max_waiting or MAX_WAITING,
    )
