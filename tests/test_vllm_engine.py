"""`SSDEngine` on vLLM answers as it does on transformers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from bridge_cases import byte_level
from conftest import make_model, make_relative
from transformers import PreTrainedTokenizerFast
from vllm_cases import PROMPTS, VLLM_OPTIONS, save_pair

from ssd_engine import GenerationParams, GenerationResult, SSDConfig, SSDEngine
from ssd_engine.config import Grammar
from ssd_engine.errors import (
    ContextLengthError,
    InvalidRequestError,
    JailbreakRiskError,
    ModelLoadError,
    RequestTimeoutError,
    VocabularyMismatchError,
)
from ssd_engine.rule.scheme import Scheme

pytest.importorskip("vllm")
LONG = GenerationParams(max_new_tokens=60)


@pytest.fixture(scope="module")
def vllm_engine(small_pair: tuple[str, str]) -> Iterator[SSDEngine]:
    with SSDEngine.from_pretrained(*small_pair, **VLLM_OPTIONS) as engine:
        yield engine


def assert_same(results: list[Any], expected: list[Any]) -> None:
    for result, other in zip(results, expected, strict=True):
        assert isinstance(result, GenerationResult), result
        assert result.token_ids == other.token_ids
        assert result.trace.schemes == other.trace.schemes
        assert result.trace.matched == other.trace.matched
        assert result.trace.bins == other.trace.bins
        assert (result.text, result.finish_reason) == (other.text, other.finish_reason)


@pytest.mark.parametrize("num_prompts", [1, 8])
def test_greedy_answers_equal_the_embedded_engines(
    embedded: SSDEngine, vllm_engine: SSDEngine, num_prompts: int
) -> None:
    prompts = PROMPTS[:num_prompts]
    expected = embedded.batch(prompts, LONG)
    assert any(Scheme.UNION in result.trace.schemes for result in embedded.batch(PROMPTS, LONG))
    assert_same(vllm_engine.batch(prompts, LONG), expected)


def test_requests_that_join_and_leave_midway_change_no_other(embedded: SSDEngine, vllm_engine: SSDEngine) -> None:
    expected = embedded.batch(PROMPTS, LONG)

    async def answers() -> list[GenerationResult | None]:
        """Each request begins when the one before it has three pieces; every third is left after five."""
        begins = [asyncio.Event() for _ in range(len(PROMPTS) + 1)]
        begins[0].set()

        async def answer(index: int) -> GenerationResult | None:
            await begins[index].wait()
            count = 0
            async with aclosing(vllm_engine.astream(PROMPTS[index], LONG)) as pieces:
                async for piece in pieces:
                    count += 1
                    if count == 3:
                        begins[index + 1].set()
                    if index % 3 == 2 and count == 5:
                        return None
                    if piece.result is not None:
                        return piece.result
            raise AssertionError("a stream without a result")

        return await asyncio.gather(*(answer(index) for index in range(len(PROMPTS))))

    results = asyncio.run(answers())
    kept = [index for index, result in enumerate(results) if result is not None]
    assert len(kept) == 6
    assert_same([results[index] for index in kept], [expected[index] for index in kept])


def test_each_request_has_its_own_settings(embedded: SSDEngine, vllm_engine: SSDEngine) -> None:
    settings = [
        SSDConfig(bin_size=3, match_threshold=0.9, threshold_decay=0.0),
        SSDConfig(sample_space_size=2, alpha_intersection=1.0, alpha_union=2.0),
        SSDConfig(alpha_decay=0.0, bin_size=1),
        SSDConfig(alpha_intersection=0.6, alpha_intersection_min=0.1),
    ]
    requests = [GenerationParams(max_new_tokens=40, ssd=config) for config in settings]
    expected = [embedded.generate(prompt, params) for prompt, params in zip(PROMPTS, requests, strict=False)]
    with ThreadPoolExecutor(len(requests)) as callers:
        results = list(callers.map(vllm_engine.generate, PROMPTS, requests))
    assert_same(results, expected)


def test_without_ssd_the_target_decides_alone(embedded: SSDEngine, vllm_engine: SSDEngine) -> None:
    lossless = GenerationParams(max_new_tokens=40, decoding="speculative")
    expected = [embedded.generate(prompt, lossless) for prompt in PROMPTS]
    for results in (
        vllm_engine.batch(PROMPTS, lossless),
        # Beside requests that ask for SSD.
        [
            result
            for result in _together(vllm_engine, [*PROMPTS, *PROMPTS], [lossless] * 8 + [LONG] * 8)
            if result.trace.decoding == "speculative"
        ],
    ):
        assert [result.token_ids for result in results] == [result.token_ids for result in expected]
        assert {scheme for result in results for scheme in result.trace.schemes} == {Scheme.NONE}


def test_log_probabilities_are_the_composites(embedded: SSDEngine, vllm_engine: SSDEngine) -> None:
    params = GenerationParams(max_new_tokens=20, logprobs=True, top_logprobs=3)
    for prompt in PROMPTS[:3]:
        ours, theirs = vllm_engine.generate(prompt, params).logprobs, embedded.generate(prompt, params).logprobs
        assert ours is not None
        assert theirs is not None
        assert [each.token_id for each in ours] == [each.token_id for each in theirs]
        assert [each.logprob for each in ours] == pytest.approx([each.logprob for each in theirs], abs=1e-3)
        assert [[i for i, _, _ in each.top] for each in ours] == [[i for i, _, _ in each.top] for each in theirs]


def test_a_seed_gives_the_same_answer_again(vllm_engine: SSDEngine) -> None:
    params = GenerationParams(max_new_tokens=30, temperature=0.8, seed=7)
    alone = vllm_engine.generate(PROMPTS[0], params)
    among_others = _together(vllm_engine, PROMPTS, [params, *[LONG] * 7])[0]
    other_seed = vllm_engine.generate(PROMPTS[0], params.model_copy(update={"seed": 8}))
    assert alone.token_ids == among_others.token_ids != other_seed.token_ids


def test_a_grammar_is_followed(vllm_engine: SSDEngine) -> None:
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    params = GenerationParams(max_new_tokens=60, grammar=Grammar(json_schema=schema))
    for result in vllm_engine.batch(PROMPTS[:4], params):
        assert isinstance(result, GenerationResult), result
        assert result.text in ('{"yes": true}', '{"yes": false}')
        assert any(result.trace.forced)


def test_penalties_of_risk_and_stop_strings_hold(embedded: SSDEngine, vllm_engine: SSDEngine) -> None:
    wary = SSDConfig(bin_size=3, match_threshold=1.0, threshold_decay=0.0)
    params = GenerationParams(max_new_tokens=60, ssd=wary, on_risk="refuse", refusal_text="No.")
    ours, theirs = vllm_engine.generate(PROMPTS[0], params), embedded.generate(PROMPTS[0], params)
    assert ours.finish_reason == "refused"
    assert ours.text == theirs.text == "No."
    with pytest.raises(JailbreakRiskError):
        vllm_engine.generate(PROMPTS[0], params.model_copy(update={"on_risk": "raise"}))
    text = embedded.generate(PROMPTS[0], LONG).text
    stop = GenerationParams(max_new_tokens=60, stop=(text[8:10],))
    assert vllm_engine.generate(PROMPTS[0], stop).text == embedded.generate(PROMPTS[0], stop).text != text


def test_bad_requests_cost_the_others_nothing(embedded: SSDEngine, vllm_engine: SSDEngine) -> None:
    bad = [
        ("draft_prompt", lambda: vllm_engine.generate(PROMPTS[0], LONG, draft_prompt="other")),
        ("decoding='target'", lambda: vllm_engine.generate(PROMPTS[0], LONG.model_copy(update={"decoding": "target"}))),
        (
            "num_draft_tokens=5",
            lambda: vllm_engine.generate(
                PROMPTS[0], GenerationParams(max_new_tokens=9, ssd=SSDConfig(num_draft_tokens=5))
            ),
        ),
        ("512", lambda: vllm_engine.generate(PROMPTS[0], GenerationParams(max_new_tokens=600))),
    ]
    with ThreadPoolExecutor(1) as callers:
        meanwhile = callers.submit(vllm_engine.batch, PROMPTS, LONG)
        for message, request in bad:
            with pytest.raises(InvalidRequestError, match=message):
                request()
        assert_same(meanwhile.result(), embedded.batch(PROMPTS, LONG))
    with pytest.raises(RequestTimeoutError):
        vllm_engine.generate(PROMPTS[0], GenerationParams(max_new_tokens=400, timeout=0.01))
    assert issubclass(ContextLengthError, InvalidRequestError)


def test_a_cache_that_is_too_small_for_all_preempts_and_changes_nothing(
    small_pair: tuple[str, str],
) -> None:
    params = GenerationParams(max_new_tokens=100)
    with SSDEngine.from_pretrained(*small_pair, dtype="float32") as engine:
        expected = engine.batch(PROMPTS, params)
    per_position = 2 * 2 * 2 * 2 * 32 * 4  # of both models: layers, keys and values, heads, their size, bytes
    options = {**VLLM_OPTIONS, "max_model_len": 160, "kv_cache_bytes": 512 * per_position}
    options["engine_args"] = {"block_size": 32, "disable_log_stats": False, "enable_prefix_caching": False}
    with SSDEngine.from_pretrained(*small_pair, **options) as engine:
        results = engine.batch(PROMPTS, params)
    assert_same(results, expected)
    assert _preemptions() > 0


def test_prompts_read_in_parts_and_from_the_prefix_cache_change_nothing(
    embedded: SSDEngine, small_pair: tuple[str, str]
) -> None:
    long = [[3 + (7 * i + j * j) % 380 for j in range(70 + 37 * i)] for i in range(6)]
    prompts = [*PROMPTS[:2], *long, [*long[5][:150], 9, 9, 9]]
    expected = embedded.batch(prompts, LONG)
    options = {**VLLM_OPTIONS, "engine_args": {"max_num_batched_tokens": 96, "block_size": 32}, "max_batch_size": 4}
    with SSDEngine.from_pretrained(*small_pair, **options) as engine:
        assert_same(engine.batch(prompts, LONG), expected)
        again = engine.batch(prompts, LONG)
    assert_same(again, expected)
    assert any(result.usage.cached_prompt_tokens >= 32 for result in again if isinstance(result, GenerationResult))


def test_an_engine_can_be_made_again(embedded: SSDEngine, small_pair: tuple[str, str]) -> None:
    for _ in range(2):
        with SSDEngine.from_pretrained(*small_pair, **VLLM_OPTIONS) as engine:
            assert_same([engine.generate(PROMPTS[0], LONG)], [embedded.generate(PROMPTS[0], LONG)])
        assert engine.is_closed


def test_two_processes_share_the_layers(embedded: SSDEngine, small_pair: tuple[str, str]) -> None:
    with SSDEngine.from_pretrained(*small_pair, tensor_parallel_size=2, **VLLM_OPTIONS) as engine:
        assert_same(engine.batch(PROMPTS, LONG), embedded.batch(PROMPTS, LONG))
        sampled = GenerationParams(max_new_tokens=30, temperature=0.9, seed=3)
        assert all(isinstance(result, GenerationResult) for result in engine.batch(PROMPTS, sampled))


@pytest.mark.parametrize(("of_target", "of_draft"), [(0, 64), (64, 0)])
def test_vocabularies_may_be_padded_to_different_sizes(
    of_target: int, of_draft: int, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    target = make_model(1, len(tokenizer), hidden_size=128)
    draft = make_relative(target, 2, 0.05)
    for model, padding in ((target, of_target), (draft, of_draft)):
        model.resize_token_embeddings(len(tokenizer) + padding)  # by ids that a model may find as likely as others
    pair = save_pair(tmp_path, target, draft, tokenizer)
    sampled, lossless = LONG.replaced(temperature=0.8, seed=5), LONG.replaced(decoding="speculative")
    with SSDEngine.from_pretrained(*pair, dtype="float32") as embedded:
        expected = embedded.batch(PROMPTS[:3], LONG)
    with SSDEngine.from_pretrained(*pair, **VLLM_OPTIONS) as engine:
        assert_same(engine.batch(PROMPTS[:3], LONG), expected)
        for result in engine.batch(PROMPTS[:3], sampled):
            assert isinstance(result, GenerationResult), result
            assert max(result.token_ids) < len(tokenizer)
        assert all(isinstance(result, GenerationResult) for result in engine.batch(PROMPTS[:3], lossless))


def test_pairs_and_options_that_cannot_work_are_told(small_pair: tuple[str, str], tmp_path: Any) -> None:
    target, _ = small_pair
    other = tmp_path / "other"
    tokenizer = byte_level(380)
    make_model(5, len(tokenizer), hidden_size=128).save_pretrained(other)
    tokenizer.save_pretrained(other)
    with pytest.raises(
        VocabularyMismatchError, match=r"token id \d+ is .* and vLLM needs one; the transformers backend"
    ):
        SSDEngine.from_pretrained(target, other, **VLLM_OPTIONS)
    with pytest.raises(InvalidRequestError, match="draft_system_prompt"):
        SSDEngine.from_pretrained(*small_pair, config=SSDConfig(draft_system_prompt="Be safe."), **VLLM_OPTIONS)
    with pytest.raises(InvalidRequestError, match="auto"):
        SSDEngine.from_pretrained(*small_pair, config=SSDConfig(num_draft_tokens="auto"), **VLLM_OPTIONS)
    with pytest.raises(InvalidRequestError, match="target_quantization"):
        SSDEngine.from_pretrained(*small_pair, target_quantization="int8", **VLLM_OPTIONS)
    with pytest.raises(InvalidRequestError, match="worker_cls"):
        SSDEngine.from_pretrained(*small_pair, engine_args={"worker_cls": "x.Y"}, **VLLM_OPTIONS)
    for stages in ({"pipeline_parallel_size": 2}, {"engine_args": {"pipeline_parallel_size": 2}}):
        with pytest.raises(InvalidRequestError, match="pipeline_parallel_size"):
            SSDEngine.from_pretrained(*small_pair, **stages, **VLLM_OPTIONS)
    with pytest.raises(ModelLoadError, match="kv_cache_bytes"):
        SSDEngine.from_pretrained(*small_pair, **{**VLLM_OPTIONS, "kv_cache_bytes": 10**15})


def _together(engine: SSDEngine, prompts: list[list[int]], params: list[GenerationParams]) -> list[GenerationResult]:
    with ThreadPoolExecutor(len(prompts)) as callers:
        return list(callers.map(engine.generate, prompts, params))


def _preemptions() -> float:
    from prometheus_client import REGISTRY

    samples = [sample for metric in REGISTRY.collect() for sample in metric.samples]
    return sum(sample.value for sample in samples if sample.name == "vllm:num_preemptions_total")
