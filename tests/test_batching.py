"""Many requests at once: the same tokens whatever the company, and nobody pays for another's trouble."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable

import pytest
import torch
from conftest import make_model, make_relative, wait_for
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ssd_engine import GenerationParams, GenerationResult, SSDConfig, SSDEngine
from ssd_engine.config import Decoding
from ssd_engine.errors import ContextLengthError, InvalidRequestError, ModelLoadError, SSDError

Pair = tuple[PreTrainedModel, PreTrainedModel]
POISON = 7
"""A token that makes the tampered model fail."""


def random_request(rng: random.Random, vocab: int) -> tuple[list[int], GenerationParams]:
    """A prompt and settings of its own."""
    config = SSDConfig(
        num_draft_tokens=rng.choice([1, 2, 3, 5, "auto"]),
        sample_space_size=rng.choice([2, 5, 10]),
        alpha_intersection=rng.choice([0.3, 0.6]),
        alpha_union=rng.choice([0.8, 2.0]),
        bin_size=rng.choice([2, 3, 7]),
        match_threshold=rng.choice([0.5, 0.9]),
    )
    params = GenerationParams(
        max_new_tokens=rng.randrange(1, 30),
        temperature=rng.choice([0.0, 0.0, 0.7, 1.0]),
        top_k=rng.choice([None, 5]),
        top_p=rng.choice([1.0, 0.8]),
        seed=rng.randrange(1000),
        decoding=rng.choice(["ssd", "ssd", "ssd", "speculative", "target"]),
        logprobs=rng.random() < 0.2,
        ssd=config,
    )
    return [rng.randrange(8, vocab) for _ in range(rng.randrange(1, 100))], params


def told(result: GenerationResult) -> tuple[object, ...]:
    """What an answer says of itself, but for its rounds, which `auto` may cut as it likes."""
    trace = result.trace
    return result.token_ids, trace.matched, trace.schemes, trace.bins, result.finish_reason, result.text


@pytest.mark.parametrize("seed", range(40))
def test_an_answer_does_not_depend_on_its_company(seed: int, tokenizer: PreTrainedTokenizerFast) -> None:
    """8 requests one by one, then together: joining at different times, and two that are given up on the way."""
    rng = random.Random(seed)
    target = make_model(seed, len(tokenizer))
    draft = make_relative(target, seed, rng.choice([0.05, 0.15, 0.3]))
    requests = [random_request(rng, len(tokenizer)) for _ in range(8)]
    with SSDEngine(target, draft, tokenizer, max_batch_size=rng.choice([3, 8])) as engine:
        alone = [told(engine.generate(prompt, params)) for prompt, params in requests]
        together: dict[int, tuple[object, ...]] = {}

        def ask(index: int) -> None:
            together[index] = told(engine.generate(*requests[index]))

        streams = [engine.stream([9] * 20, GenerationParams(max_new_tokens=500, seed=i)) for i in range(2)]
        for stream in streams:
            next(stream)
        threads = [threading.Thread(target=ask, args=(index,)) for index in range(8)]
        for index, thread in enumerate(threads):
            thread.start()
            if index in (2, 5):
                next(streams[index % 2])
                streams[index % 2].close()
        for thread in threads:
            thread.join()
    assert [together[index] for index in range(8)] == alone


def test_requests_share_their_passes(tiny_pair: Pair, tokenizer: PreTrainedTokenizerFast) -> None:
    passes: list[int] = []
    embeddings = [model.get_input_embeddings() for model in tiny_pair]
    hooks = [layer.register_forward_pre_hook(lambda *_: passes.append(1)) for layer in embeddings]
    prompts = [[20 + i] * 10 for i in range(8)]
    params = GenerationParams(max_new_tokens=40)
    with SSDEngine(*tiny_pair, tokenizer=tokenizer) as engine:
        passes.clear()
        for prompt in prompts:
            engine.generate(prompt, params)
        one_by_one = len(passes)
        passes.clear()
        engine.batch(prompts, params)
    for hook in hooks:
        hook.remove()
    assert len(passes) < one_by_one / 3


@pytest.mark.parametrize("draft_tokens", [1, 2, 7, "auto"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_number_of_drafts_changes_no_token(
    draft_tokens: int | str, temperature: float, tiny_engine: SSDEngine
) -> None:
    def ask(number: int | str) -> list[int]:
        params = GenerationParams(
            max_new_tokens=60, temperature=temperature, seed=4, ssd=SSDConfig(num_draft_tokens=number)
        )
        return tiny_engine.generate([11, 12, 13], params).token_ids

    assert ask(draft_tokens) == ask(3)


def test_a_running_stream_goes_on_while_a_long_prompt_is_read(tiny_engine: SSDEngine) -> None:
    order: list[str] = []
    stream = tiny_engine.stream([9] * 5, GenerationParams(max_new_tokens=1000))
    next(stream)

    def ask_long() -> None:
        for _ in tiny_engine.stream([10] * 1500, GenerationParams(max_new_tokens=2)):
            order.append("long")  # noqa: PERF401 (the other thread adds to it meanwhile)

    thread = threading.Thread(target=ask_long)
    thread.start()
    while "long" not in order:
        next(stream)
        order.append("running")
    stream.close()
    thread.join()
    assert order.count("running") > 30


def test_a_prefix_is_shared_by_all_that_start_with_it_even_in_one_batch(tiny_engine: SSDEngine) -> None:
    prefix = [10 + i % 50 for i in range(200)]
    results = tiny_engine.batch([[*prefix, 100 + i] for i in range(6)], GenerationParams(max_new_tokens=4))
    cached = [result.usage.cached_prompt_tokens for result in results if isinstance(result, GenerationResult)]
    assert cached == [0] + [200] * 5


# Failures


def fail_on_poison(model: PreTrainedModel) -> Callable[[], None]:
    """Make `model` fail on passes that hold a certain token; returns what ends it."""

    def check(module: object, args: tuple[torch.Tensor]) -> None:
        if bool((args[0] == POISON).any()):
            raise MemoryError("no room for this one")

    remove: Callable[[], None] = model.get_input_embeddings().register_forward_pre_hook(check).remove
    return remove


@pytest.mark.parametrize("place", ["in the prompt", "as its last token"])
@pytest.mark.parametrize("side", [0, 1])
def test_a_request_that_makes_a_model_fail_ends_alone(
    side: int, place: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    target = make_model(5, len(tokenizer))
    pair = target, make_relative(target, 6, 0.1)
    prompts = [[20 + i] * (3 + 9 * i) for i in range(6)]
    prompts[2] = [*[30] * 40, POISON, *([] if place == "as its last token" else [31] * 30)]
    params = GenerationParams(max_new_tokens=25, temperature=0.8, seed=1)
    with SSDEngine(*pair, tokenizer, prefix_cache_bytes=0) as engine:
        expected = [engine.generate(prompt, params).token_ids for prompt in prompts]
        stop = fail_on_poison(pair[side])
        outcomes = engine.batch(prompts, params)
        stop()
        for index, outcome in enumerate(outcomes):
            if index == 2:
                assert isinstance(outcome, MemoryError)
            elif POISON not in expected[index]:
                assert isinstance(outcome, GenerationResult)
                assert outcome.token_ids == expected[index]
        assert engine.generate(prompts[2], params).token_ids == expected[2]


@pytest.mark.parametrize("decoding", ["ssd", "speculative", "target"])
def test_a_request_whose_numbers_overflow_ends_alone(decoding: Decoding, tokenizer: PreTrainedTokenizerFast) -> None:
    target = make_model(5, len(tokenizer))
    draft = make_relative(target, 6, 0.1)
    with torch.no_grad():
        target.get_input_embeddings().weight[POISON] = torch.inf
    prompts = [[20 + i] * (3 + 9 * i) for i in range(4)]
    prompts[2] = [*[30] * 40, POISON, *[31] * 30]
    params = GenerationParams(max_new_tokens=12, decoding=decoding)
    with SSDEngine(target, draft, tokenizer, prefix_cache_bytes=0) as engine:
        expected = [engine.generate(prompt, params).token_ids for prompt in (prompts[0], prompts[1], prompts[3])]
        outcomes = engine.batch(prompts, params)
        with pytest.raises(SSDError, match=r"not numbers \(NaN\).* try dtype='float32'"):
            raise outcomes.pop(2)
        assert [outcome.token_ids for outcome in outcomes if isinstance(outcome, GenerationResult)] == expected


async def test_cancelling_one_of_many_frees_its_place_and_leaves_the_rest(
    tiny_pair: Pair, tokenizer: PreTrainedTokenizerFast
) -> None:
    """With two places, a third request is answered only once one of the two is given up."""
    with SSDEngine(*tiny_pair, tokenizer=tokenizer, max_batch_size=2) as engine:
        params = GenerationParams(max_new_tokens=30)
        expected = engine.generate([40] * 9, params).token_ids
        long = GenerationParams(max_new_tokens=1500)
        tasks = [asyncio.create_task(engine.agenerate([30 + i] * 9, long)) for i in range(2)]
        third = asyncio.create_task(engine.agenerate([40] * 9, params))
        while engine.num_running < 2:
            await asyncio.sleep(0.001)
        assert engine.num_waiting == 1
        tasks[0].cancel()
        assert (await third).token_ids == expected
        assert not tasks[1].done()
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert tasks[0].cancelled()


# Memory


def bytes_per_position(pair: Pair) -> int:
    """Keys and values of one position in both models: 2 x layers x key-value heads x head size x 4 bytes each."""
    return sum(
        2 * c.num_hidden_layers * c.num_key_value_heads * (c.hidden_size // c.num_attention_heads) * 4
        for c in (model.config for model in pair)
    )


def test_a_request_that_finds_no_room_waits_and_one_that_never_will_is_refused(
    tiny_pair: Pair, tokenizer: PreTrainedTokenizerFast
) -> None:
    room = 100 * bytes_per_position(tiny_pair)
    params = GenerationParams(max_new_tokens=40)
    prompts = [[20 + i] * 20 for i in range(5)]
    with SSDEngine(*tiny_pair, tokenizer=tokenizer) as roomy:
        expected = [roomy.generate(prompt, params).token_ids for prompt in prompts]
    with SSDEngine(*tiny_pair, tokenizer=tokenizer, kv_cache_bytes=room) as engine:
        with pytest.raises(
            ContextLengthError, match=r"need 101 positions; the key-value cache has 100.*kv_cache_bytes"
        ):
            engine.generate([9] * 61, params)
        results = engine.batch(prompts, params)
        assert [r.token_ids for r in results if isinstance(r, GenerationResult)] == expected
        wait_for(lambda: engine.is_idle)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"max_batch_size": 0}, InvalidRequestError, "max_batch_size=0"),
        ({"kv_cache_bytes": 10**15}, ModelLoadError, r"asks for 1000000\.00 GB, and [0-9.]+ GB are available"),
        ({"kv_cache_bytes": 5}, ModelLoadError, r"kv_cache_bytes=5 holds no token: one position.* takes 512 bytes"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_request(
    options: dict[str, int],
    error: type[Exception],
    said: str,
    tiny_pair: Pair,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    with pytest.raises(error, match=said):
        SSDEngine(*tiny_pair, tokenizer=tokenizer, **options)
