"""The vLLM backend of `SSDEngine`: vLLM's engine behind the same scheduler, answers and results."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ssd_engine.answers.result import Timings
from ssd_engine.backends.vllm.compat import shared_processors
from ssd_engine.backends.vllm.requests import EXTRA_ARG, GIVEN_ARG, requested_config
from ssd_engine.config import GenerationParams, SSDConfig
from ssd_engine.errors import InvalidRequestError, ModelLoadError, SSDError
from ssd_engine.rule.choice import Choice
from ssd_engine.rule.scheme import Scheme
from ssd_engine.rule.signals import Look
from ssd_engine.serving.decoder import DecoderError
from ssd_engine.trace.codes import TraceReader, with_logprobs

if TYPE_CHECKING:
    from ssd_engine.backends.vllm.pair import VllmPair
    from ssd_engine.grammars.guide import Guide

_GIVEN_ALONE = "start: answer\nanswer: @given"
"""What `AnswerGrammar` writes where the answer has a Lark grammar of its own, and nothing else may come."""


class VllmSequence:
    """An answer that vLLM is making."""

    def __init__(self, request_id: str, params: GenerationParams, config: SSDConfig) -> None:
        self.request_id = request_id
        self.timings = Timings()
        """vLLM does not say how long its passes take; the totals are measured as ever."""
        self.cached_prompt_tokens = 0
        self._params = params
        self._reader = TraceReader(config) if params.decoding == "ssd" else None

    @property
    def num_drafted(self) -> None:
        """Not known: vLLM does not say how many of a step's drafts it threw away."""

    @property
    def num_unread_parts(self) -> int:
        """None: vLLM reads prompts within its own steps."""
        return 0

    def take_beginning(self) -> Sequence[Look]:
        """The highest scores over a given beginning, as its last place; nothing at later calls."""
        if self._reader is None:
            return ()
        looks, self._reader.beginning = self._reader.beginning, []
        return looks

    def choices(self, output: Any) -> list[Choice]:
        """What a step of vLLM added, as its `RequestOutput` with the new tokens alone says.

        Raises:
            SSDError: the models' numbers are NaN, or vLLM has ended the request for a reason of its own.
        """
        self.cached_prompt_tokens = output.num_cached_tokens or 0
        completion = output.outputs[0]
        choices = self._read(list(completion.token_ids), completion.logprobs)
        if not output.finished:
            return choices
        reason = completion.finish_reason
        if reason not in ("stop", "length") or not choices:
            raise SSDError(f"vLLM has ended this request: finish_reason={reason!r}; see its log, and ask again")
        return [*choices[:-1], replace(choices[-1], ends=reason)]

    def _read(self, token_ids: list[int], logprobs: list[dict[int, Any]] | None) -> list[Choice]:
        if not token_ids:
            return []
        top = self._params.top_logprobs if self._params.logprobs else None
        if self._reader is None and top is None:
            logprobs = [{}] * len(token_ids)
        if logprobs is None:
            raise SSDError(
                "vLLM gave tokens without log-probabilities, in which it is told how they were chosen; use a version "
                "of vLLM that docs/vllm.md names"
            )
        if self._reader is not None:
            return [self._reader.read(token_id, at, top) for token_id, at in zip(token_ids, logprobs, strict=True)]
        # Its own rule says only how many were accepted: all but the last one.
        last = len(token_ids) - 1
        choices = [Choice(i, matched=place < last, scheme=Scheme.NONE, bin=None) for place, i in enumerate(token_ids)]
        return [with_logprobs(choice, at, top) for choice, at in zip(choices, logprobs, strict=True)]


class VllmDecoder:
    """Hands requests to vLLM and its tokens to the scheduler; one step of vLLM is a round."""

    def __init__(self, pair: VllmPair) -> None:
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        self._pair = pair
        try:
            with shared_processors(pair.engine_args["tensor_parallel_size"]):
                self._engine = LLMEngine.from_engine_args(EngineArgs(**{"disable_log_stats": True, **pair.engine_args}))
        except (RuntimeError, ValueError, TypeError) as error:
            raise ModelLoadError(f"vLLM could not start {pair.target!r} with {pair.draft!r}: {error}") from error
        self._sequences: dict[str, VllmSequence] = {}

    @property
    def positions(self) -> int:
        """Most token positions that one sequence can have."""
        length: int = self._engine.model_config.max_model_len
        return length

    def open(
        self,
        target_ids: Sequence[int],
        draft_ids: Sequence[int],
        params: GenerationParams,
        config: SSDConfig,
        guide: Guide | None,
        num_given: int,
    ) -> VllmSequence | None:
        """Begin an answer; vLLM keeps what it has no room for yet."""
        if list(target_ids) != list(draft_ids):
            raise InvalidRequestError("draft_prompt: vLLM gives both models one prompt; leave it out")
        sequence = VllmSequence(uuid.uuid4().hex, params, config)
        prompt = {"prompt_token_ids": list(target_ids)}
        from vllm.v1.engine.exceptions import EngineDeadError

        sampling_params = self._sampling_params(params, config, guide, num_given)
        try:
            self._engine.add_request(sequence.request_id, prompt, sampling_params)
        except EngineDeadError as error:
            raise DecoderError(f"vLLM has stopped: {error}") from error
        except Exception as error:
            raise InvalidRequestError(f"vLLM refuses the request: {error}; change what it names") from error
        self._sequences[sequence.request_id] = sequence
        return sequence

    def close(self, sequence: VllmSequence) -> None:
        """Free what a sequence holds."""
        if self._sequences.pop(sequence.request_id, None) is not None:
            self._engine.abort_request([sequence.request_id])

    def shut_down(self) -> None:
        """End vLLM's processes."""
        self._engine.engine_core.shutdown()
        del self._engine

    @property
    def parts_at_once(self) -> int:
        """No parts are read here."""
        return 1

    def read_prompts(self, sequences: Sequence[VllmSequence]) -> Mapping[VllmSequence, Exception]:
        """Nothing: see `VllmSequence.num_unread_parts`."""
        return {}

    def round(self, sequences: Sequence[VllmSequence]) -> list[list[Choice] | Exception]:
        """One step of vLLM: new tokens of those sequences that had a part in it."""
        if not self._engine.has_unfinished_requests():  # a step would wait for ever
            return [SSDError("vLLM no longer knows this request; ask again") for _ in sequences]
        try:
            outputs = {output.request_id: output for output in self._engine.step()}
        except Exception as error:  # the engine has died, and everybody's answer with it
            raise DecoderError(f"vLLM has stopped: {error}") from error
        return [_added(sequence, outputs.get(sequence.request_id)) for sequence in sequences]

    def _sampling_params(self, params: GenerationParams, config: SSDConfig, guide: Guide | None, num_given: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        if params.decoding == "target":
            raise InvalidRequestError(
                "decoding='target': vLLM drafts for every request; use 'speculative', whose tokens are distributed as "
                "the target's"
            )
        is_ssd = params.decoding == "ssd"
        if is_ssd:
            requested_config(config.model_dump(), self._pair.num_draft_tokens)
        return SamplingParams(
            max_tokens=params.limit,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k or 0,
            seed=params.seed,
            ignore_eos=True,  # which tokens end an answer is known here
            stop_token_ids=sorted(self._pair.intake.eos_ids),
            detokenize=False,
            logprobs=params.top_logprobs if is_ssd or params.logprobs else None,
            extra_args={EXTRA_ARG: config.model_dump() if is_ssd else False, GIVEN_ARG: num_given},
            skip_reading_prefix_cache=num_given > 0,  # what is to be heard has to be read
            structured_outputs=None if guide is None else StructuredOutputsParams(grammar=lark(guide)),
            output_kind=RequestOutputKind.DELTA,
        )


def _added(sequence: VllmSequence, output: Any) -> list[Choice] | Exception:
    """What a step added to a sequence, or what is wrong with it alone; `output` is None where it had no part."""
    try:
        return [] if output is None else sequence.choices(output)
    except Exception as error:
        return error


def lark(guide: Guide) -> str:
    """The grammar as vLLM takes it: one, in Lark."""
    own, *given = (grammar["lark_grammar"] for grammar in json.loads(guide.source)["grammars"])
    if not given:
        return str(own)
    if own != _GIVEN_ALONE:
        raise InvalidRequestError("a Lark grammar beside tools: vLLM takes one grammar; leave out one of the two")
    return str(given[0])
