"""What `ssd bench` measures: this engine, transformers and, where installed, llama.cpp and vLLM, in own processes."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from ssd_engine.answers.result import GenerationResult
from ssd_engine.config import GenerationParams, Grammar
from ssd_engine.evaluation.llama_cpp import LlamaCpp
from ssd_engine.models.pair import PairSpec
from ssd_engine.pair_engine import SSDEngine

Messages = list[dict[str, str]]
Decoding = Literal["target", "speculative", "ssd"]
MOST_REQUESTS = 16
"""Requests that decode together at most, in every contender."""
_VLLM_MODEL_LEN = 1024
_VLLM_CACHE_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class Host:
    """What a process loads; contenders that differ in their decoding alone share one."""

    library: Literal["ssd", "ssd on vllm", "transformers", "llama.cpp", "llama.cpp, drafting", "vllm"]
    target_quantization: str = "none"
    draft_quantization: str = "none"
    keeps_prefixes: bool = False
    """Whether a prompt may find its beginning read already, which would be unfair where contenders share a process."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to answer."""

    name: str
    host: Host
    decoding: Decoding = "target"
    most_requests: int = MOST_REQUESTS


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One answered prompt. Times are in seconds of wall clock, memory in bytes."""

    prompt_tokens: int
    tokens: int
    total: float
    first_token: float
    cached_tokens: int = 0
    peak_memory: int = 0
    text: str = ""
    first_round_tokens: int = 1
    rounds: int = 0
    forced_tokens: int = 0
    match_rate: float | None = None
    draft_forward: float = 0.0
    draft_passes: int = 0
    target_forward: float = 0.0
    selection: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second, from the submission on."""
        return self.tokens / self.total

    @property
    def decoding_tokens_per_second(self) -> float | None:
        """After the first round, the reading of the prompt left out; None where that is all."""
        tokens = self.tokens - self.first_round_tokens
        return tokens / (self.total - self.first_token) if tokens > 0 else None


class Answerer(Protocol):
    """What a host's process answers with."""

    def __call__(self, decoding: Decoding, prompts: Sequence[Messages], max_new_tokens: int) -> list[Sample]:
        """Answer prompts that all arrive at once."""

    def close(self) -> None:
        """Let go of what a process that ends would not."""


class EngineAnswerer:
    """Answers through SSDEngine."""

    def __init__(self, host: Host, pair: PairSpec) -> None:
        self._engine = SSDEngine.from_spec(pair.replaced(max_batch_size=MOST_REQUESTS, **self._options(host)))

    def _options(self, host: Host) -> dict[str, Any]:
        return {
            "target_quantization": host.target_quantization,
            "draft_quantization": host.draft_quantization,
            "prefix_cache_bytes": None if host.keeps_prefixes else 0,
        }

    def close(self) -> None:
        """Free the models."""
        self._engine.close()

    def __call__(
        self, decoding: Decoding, prompts: Sequence[Messages], max_new_tokens: int, grammar: Grammar | None = None
    ) -> list[Sample]:
        """Answer prompts that all arrive at once."""
        params = GenerationParams(max_new_tokens=max_new_tokens, decoding=decoding, grammar=grammar)
        return [_sample(outcome) for outcome in self._engine.batch(prompts, params)]


class EngineOnVllmAnswerer(EngineAnswerer):
    """Answers through SSDEngine on vLLM; `speculative` is vLLM's own lossless rule, in its own code."""

    def _options(self, host: Host) -> dict[str, Any]:
        return {
            "compile": None,
            "max_model_len": _VLLM_MODEL_LEN,
            "kv_cache_bytes": _VLLM_CACHE_BYTES,
            "engine_args": {"enable_prefix_caching": False},
        }


def _sample(result: GenerationResult | Exception) -> Sample:
    if isinstance(result, Exception):
        raise result
    trace, timings = result.trace, result.timings
    return Sample(
        prompt_tokens=result.usage.prompt_tokens,
        tokens=len(result.token_ids),
        total=timings.total,
        first_token=timings.first_token,
        cached_tokens=result.usage.cached_prompt_tokens,
        text=result.text,
        first_round_tokens=trace.round_sizes[0],
        rounds=trace.rounds,
        forced_tokens=trace.num_forced,
        match_rate=None if trace.decoding == "target" else trace.match_rate,
        draft_forward=timings.draft_forward,
        draft_passes=timings.draft_passes,
        target_forward=timings.target_forward,
        selection=timings.selection,
    )


class TransformersAnswerer:
    """Answers through `generate`, alone or assisted by the draft."""

    def __init__(self, host: Host, pair: PairSpec) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from ssd_engine.bridge.between import first_difference
        from ssd_engine.models.checkpoints import load_tokenizer, shared_vocabulary_size

        self._tokenizer = AutoTokenizer.from_pretrained(
            str(pair.target), revision=pair.target_revision, padding_side="left"
        )
        self._target, self._draft = (
            AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype="auto", use_safetensors=True)
            for source, revision in ((pair.target, pair.target_revision), (pair.draft, pair.draft_revision))
        )
        draft_tokenizer = load_tokenizer(str(pair.draft), pair.draft_revision)
        size = shared_vocabulary_size(self._target, self._draft)
        self._assistance: dict[str, Any] = {"assistant_model": self._draft}
        if first_difference(self._tokenizer, draft_tokenizer, size) is not None:
            self._assistance |= {"tokenizer": self._tokenizer, "assistant_tokenizer": draft_tokenizer}

    def close(self) -> None:
        """Nothing is held."""

    def __call__(self, decoding: Decoding, prompts: Sequence[Messages], max_new_tokens: int) -> list[Sample]:
        """Answer prompts that all arrive at once."""
        import torch

        inputs = self._tokenizer.apply_chat_template(
            list(prompts), add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        clock = _FirstTokenClock()
        with torch.inference_mode():
            output = self._target.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                **(self._assistance if decoding == "speculative" else {}),
                stopping_criteria=[clock],
            )
        total = time.perf_counter() - clock.start
        answers = [self._cut(row[inputs["input_ids"].shape[1] :].tolist()) for row in output]
        return [
            Sample(
                prompt_tokens=int(mask.sum()),
                tokens=len(answer),
                total=total,
                first_token=clock.first_token,
                text=self._tokenizer.decode(answer, skip_special_tokens=True),
            )
            for answer, mask in zip(answers, inputs["attention_mask"], strict=True)
        ]

    def _cut(self, token_ids: list[int]) -> list[int]:
        """An answer without the padding behind its end."""
        ends = self._target.generation_config.eos_token_id
        for index, token_id in enumerate(token_ids):
            if token_id in (ends if isinstance(ends, list) else [ends]):
                return token_ids[: index + 1]
        return token_ids


class _FirstTokenClock:
    """A stopping criterion that never stops, and looks at the clock."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.first_token = 0.0

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        import torch

        self.first_token = self.first_token or time.perf_counter() - self.start
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class LlamaCppAnswerer:
    """Answers through llama.cpp, alone or with its own speculation."""

    def __init__(self, host: Host, pair: PairSpec) -> None:
        self._llama_cpp = LlamaCpp(pair, most_requests=MOST_REQUESTS, drafts=host.library == "llama.cpp, drafting")

    def close(self) -> None:
        """Nothing is held."""

    def __call__(self, decoding: Decoding, prompts: Sequence[Messages], max_new_tokens: int) -> list[Sample]:
        """Answer prompts that all arrive at once."""
        return [
            Sample(
                prompt_tokens=answer["usage"]["prompt_tokens"],
                tokens=answer["usage"]["completion_tokens"],
                total=answer["seconds"],
                first_token=answer["timings"]["prompt_ms"] / 1e3,
                text=answer["choices"][0]["message"]["content"],
            )
            for answer in self._llama_cpp.answer(prompts, max_new_tokens)
        ]


class VLLMAnswerer:
    """Answers through vLLM with the target alone."""

    def __init__(self, host: Host, pair: PairSpec) -> None:
        from ssd_engine.backends.vllm.compat import require_vllm, shared_processors

        require_vllm()
        from vllm import LLM

        with shared_processors(1):
            self._llm = LLM(
                str(pair.target),
                revision=pair.target_revision,
                dtype=pair.dtype or "auto",
                max_model_len=_VLLM_MODEL_LEN,
                max_num_seqs=MOST_REQUESTS,
                kv_cache_memory_bytes=_VLLM_CACHE_BYTES,
                enable_prefix_caching=False,
                enforce_eager=True,
                disable_log_stats=False,
                generation_config="vllm",
            )

    def close(self) -> None:
        """End vLLM's processes."""
        # Its processes do not end with this one, which would wait for them.
        self._llm.llm_engine.engine_core.shutdown()

    def __call__(self, decoding: Decoding, prompts: Sequence[Messages], max_new_tokens: int) -> list[Sample]:
        """Answer prompts that all arrive at once."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=max_new_tokens)
        start = time.perf_counter()
        outputs = self._llm.chat(list(prompts), params, use_tqdm=False)
        total = time.perf_counter() - start
        return [
            Sample(
                prompt_tokens=len(output.prompt_token_ids),
                tokens=len(output.outputs[0].token_ids),
                total=total,
                first_token=output.metrics.first_token_latency if output.metrics else 0.0,
                text=output.outputs[0].text,
            )
            for output in outputs
        ]


class HostProcess:
    """A host in its own process, so that its peak memory is its own."""

    def __init__(self, host: Host, pair: PairSpec) -> None:
        self.host = host
        self._is_loaded = False
        self._pool = ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn"), initializer=_load, initargs=(host, pair)
        )

    def answer(
        self, decoding: Decoding, prompts: Sequence[Messages], max_new_tokens: int, **options: Any
    ) -> list[Sample]:
        """Answer prompts that all arrive at once; `options` are what this library's answerer takes beside them."""
        self._is_loaded = True
        return self._pool.submit(_answer, decoding, prompts, max_new_tokens, options).result()

    def close(self) -> None:
        """End the process."""
        if self._is_loaded:
            with suppress(BrokenProcessPool):
                self._pool.submit(_close).result()
        self._pool.shutdown()


_ANSWERERS: dict[str, Any] = {
    "ssd": EngineAnswerer,
    "ssd on vllm": EngineOnVllmAnswerer,
    "transformers": TransformersAnswerer,
    "llama.cpp": LlamaCppAnswerer,
    "llama.cpp, drafting": LlamaCppAnswerer,
    "vllm": VLLMAnswerer,
}
_answerer: Answerer
"""The one host of this (worker) process."""


def _load(host: Host, pair: PairSpec) -> None:
    from transformers.utils import logging

    global _answerer
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    _answerer = _ANSWERERS[host.library](host, pair)


def _answer(
    decoding: Decoding, prompts: Sequence[Messages], max_new_tokens: int, options: dict[str, Any]
) -> list[Sample]:
    samples = _answerer(decoding, prompts, max_new_tokens, **options)
    if isinstance(_answerer, EngineOnVllmAnswerer | VLLMAnswerer):
        return samples  # the models are in processes of vLLM's own
    return [replace(sample, peak_memory=peak_memory()) for sample in samples]


def _close() -> None:
    _answerer.close()


def peak_memory() -> int:
    """Bytes that this process has had in memory at most, weights mapped from files included."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
