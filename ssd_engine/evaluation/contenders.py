"""What `ssd bench` measures: this engine and transformers, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from ssd_engine.config import GenerationParams, SSDConfig
from ssd_engine.engine import SSDEngine

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Contender:
    """One way to answer. `draft_quantization` and `decoding` are this engine's."""

    name: str
    library: Literal["ssd", "transformers"]
    decoding: Literal["target", "speculative", "ssd"] = "target"
    draft_quantization: str | None = None


@dataclass(frozen=True)
class Pair:
    """What is loaded: hub ids or folders."""

    target: str
    draft: str
    config: SSDConfig = field(default_factory=SSDConfig)


@dataclass(frozen=True)
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
    match_rate: float | None = None
    draft_forward: float = 0.0
    target_forward: float = 0.0
    selection: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.total


class Answerer(Protocol):
    def __call__(self, messages: Messages, max_new_tokens: int) -> Sample: ...


class EngineAnswerer:
    """Answers through SSDEngine."""

    def __init__(self, contender: Contender, pair: Pair) -> None:
        self._decoding = contender.decoding
        self._engine = SSDEngine.from_pretrained(
            pair.target, pair.draft, config=pair.config, draft_quantization=contender.draft_quantization
        )

    def __call__(self, messages: Messages, max_new_tokens: int) -> Sample:
        params = GenerationParams(max_new_tokens=max_new_tokens, decoding=self._decoding)
        result = self._engine.generate(messages, params)
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
            match_rate=None if self._decoding == "target" else trace.match_rate,
            draft_forward=timings.draft_forward,
            target_forward=timings.target_forward,
            selection=timings.selection,
        )


class TransformersAnswerer:
    """Answers through `generate`, alone or assisted by the draft."""

    def __init__(self, contender: Contender, pair: Pair) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(pair.target)
        self._target = AutoModelForCausalLM.from_pretrained(pair.target, dtype="auto", use_safetensors=True)
        self._assistant = None
        if contender.decoding == "speculative":
            self._assistant = AutoModelForCausalLM.from_pretrained(pair.draft, dtype="auto", use_safetensors=True)

    def __call__(self, messages: Messages, max_new_tokens: int) -> Sample:
        import torch

        inputs = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        clock = _FirstTokenClock()
        with torch.inference_mode():
            output = self._target.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                assistant_model=self._assistant,
                streamer=clock,
            )
        total = time.perf_counter() - clock.start
        prompt_tokens = inputs["input_ids"].shape[1]
        answer = output[0, prompt_tokens:]
        text = self._tokenizer.decode(answer, skip_special_tokens=True)
        return Sample(prompt_tokens, tokens=len(answer), total=total, first_token=clock.first_token, text=text)


class _FirstTokenClock:
    """A streamer that only looks at the clock: `generate` puts the prompt first, then the new tokens."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.first_token = 0.0
        self._puts = 0

    def put(self, _: Any) -> None:
        self._puts += 1
        if self._puts == 2:
            self.first_token = time.perf_counter() - self.start

    def end(self) -> None:
        """Nothing is buffered."""


class ContenderProcess:
    """A contender in its own process, so that its peak memory is its own."""

    def __init__(self, contender: Contender, pair: Pair) -> None:
        self.contender = contender
        self._pool = ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn"), initializer=_load, initargs=(contender, pair)
        )

    def answer(self, messages: Messages, max_new_tokens: int) -> Sample:
        return self._pool.submit(_answer, messages, max_new_tokens).result()

    def close(self) -> None:
        self._pool.shutdown()


_answerer: Answerer
"""The one contender of this (worker) process."""


def _load(contender: Contender, pair: Pair) -> None:
    from transformers.utils import logging

    global _answerer
    logging.disable_progress_bar()
    make = EngineAnswerer if contender.library == "ssd" else TransformersAnswerer
    _answerer = make(contender, pair)


def _answer(messages: Messages, max_new_tokens: int) -> Sample:
    return replace(_answerer(messages, max_new_tokens), peak_memory=peak_memory())


def peak_memory() -> int:
    """Bytes that this process has had in memory at most, weights mapped from files included."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
