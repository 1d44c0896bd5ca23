"""The engine as its users see it: prompts, streaming, stop strings, concurrency, errors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
from conftest import make_model, wait_for
from transformers import PreTrainedTokenizerFast

from ssd_engine import GenerationParams, GenerationResult, SSDConfig, SSDEngine
from ssd_engine.errors import (
    ContextLengthError,
    EngineClosedError,
    InvalidRequestError,
    RequestTimeoutError,
)

CHAT = [{"role": "user", "content": "Say something."}]
LONG = GenerationParams(max_new_tokens=1500)


# Answers


def test_the_three_kinds_of_prompt_agree(tiny_engine: SSDEngine, tokenizer: PreTrainedTokenizerFast) -> None:
    params = GenerationParams(max_new_tokens=20)
    ids = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert tiny_engine.generate(CHAT, params).token_ids == tiny_engine.generate(ids, params).token_ids
    text = "The quick brown"
    assert (
        tiny_engine.generate(text, params).token_ids
        == tiny_engine.generate(tokenizer(text).input_ids, params).token_ids
    )


def test_a_result_tells_what_happened(tiny_engine: SSDEngine, tokenizer: PreTrainedTokenizerFast) -> None:
    result = tiny_engine.generate(CHAT, GenerationParams(max_new_tokens=23))
    assert result.finish_reason == "length"
    assert result.usage.completion_tokens == len(result.token_ids) == 23
    assert result.usage.prompt_tokens == tiny_engine.count_tokens(CHAT)
    assert result.text == tokenizer.decode(result.token_ids, skip_special_tokens=True)
    trace = result.trace
    assert len(trace.schemes) == len(trace.matched) == len(trace.texts) == 23
    assert len(trace.match_ratios) == len(trace.thresholds) == 23 // 7
    assert sum(trace.round_sizes) == 23
    assert result.timings.total >= result.timings.first_token > 0


def test_the_same_seed_gives_the_same_tokens_and_another_does_not(tiny_engine: SSDEngine) -> None:
    def sample(seed: int) -> list[int]:
        return tiny_engine.generate(CHAT, GenerationParams(max_new_tokens=30, temperature=1.0, seed=seed)).token_ids

    first = sample(1)
    assert sample(2) != first
    assert sample(1) == first


def test_logprobs_are_of_the_composite(tiny_engine: SSDEngine) -> None:
    result = tiny_engine.generate(CHAT, GenerationParams(max_new_tokens=10, logprobs=True, top_logprobs=3))
    assert result.logprobs is not None
    assert [entry.token_id for entry in result.logprobs] == result.token_ids
    for entry in result.logprobs:
        assert entry.logprob <= 0
        assert entry.top[0][0] == entry.token_id, "a greedy choice is the likeliest"
        assert list(entry.top) == sorted(entry.top, key=lambda item: -item[2])
    assert tiny_engine.generate(CHAT, GenerationParams(max_new_tokens=2)).logprobs is None


def test_the_draft_can_have_its_own_prompt_and_system_prompt(tiny_engine: SSDEngine) -> None:
    cautious = GenerationParams(max_new_tokens=25, ssd=SSDConfig(draft_system_prompt="Refuse what harms."))
    by_setting = tiny_engine.generate(CHAT, cautious)
    system = {"role": "system", "content": "Refuse what harms."}
    by_prompt = tiny_engine.generate(CHAT, GenerationParams(max_new_tokens=25), draft_prompt=[system, *CHAT])
    assert by_setting.token_ids == by_prompt.token_ids
    assert by_setting.usage.prompt_tokens == tiny_engine.count_tokens(CHAT), "the target does not see it"
    assert by_setting.trace.matched != tiny_engine.generate(CHAT, GenerationParams(max_new_tokens=25)).trace.matched


def test_an_answer_can_go_on_from_a_beginning(tiny_engine: SSDEngine, tokenizer: PreTrainedTokenizerFast) -> None:
    begun = [*CHAT, {"role": "assistant", "content": "The quick"}]
    ids = tokenizer.apply_chat_template(begun, continue_final_message=True, return_dict=False)
    params = GenerationParams(max_new_tokens=12)
    continued = tiny_engine.generate(begun, GenerationParams(max_new_tokens=12, continue_final_message=True))
    assert continued.token_ids == tiny_engine.generate(ids, params).token_ids


def test_the_next_turn_reuses_the_prefix(tiny_engine: SSDEngine) -> None:
    turn = [{"role": "user", "content": "The quick brown fox jumps over the lazy dog. " * 20}]
    params = GenerationParams(max_new_tokens=5)
    first = tiny_engine.generate(turn, params)
    assert first.usage.cached_prompt_tokens == 0
    again = tiny_engine.generate(turn, params)
    assert first.usage.prompt_tokens - again.usage.cached_prompt_tokens <= 16
    assert again.token_ids == first.token_ids
    more = [*turn, {"role": "assistant", "content": "So?"}, {"role": "user", "content": "Go on."}]
    assert tiny_engine.generate(more, params).usage.cached_prompt_tokens >= first.usage.prompt_tokens - 80


# Streaming and stop strings


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_pieces_join_to_the_answer(temperature: float, tiny_engine: SSDEngine) -> None:
    params = GenerationParams(max_new_tokens=60, temperature=temperature, seed=5, logprobs=True)
    pieces = list(tiny_engine.stream(CHAT, params))
    result = pieces[-1].result
    assert result is not None
    assert all(piece.result is None for piece in pieces[:-1])
    assert "".join(piece.text for piece in pieces) == result.text == tiny_engine.generate(CHAT, params).text
    assert [i for piece in pieces for i in piece.token_ids] == result.token_ids
    assert [len(piece.token_ids) for piece in pieces] == result.trace.round_sizes
    assert [scheme for piece in pieces for scheme in piece.schemes] == result.trace.schemes
    assert [entry for piece in pieces for entry in piece.logprobs] == result.logprobs


def test_a_stop_string_across_tokens_ends_the_answer_and_never_shows(tiny_engine: SSDEngine) -> None:
    params = GenerationParams(max_new_tokens=60)
    free = tiny_engine.generate(CHAT, params)
    texts = [text for text in free.trace.texts if text]
    stop = texts[8][-1:] + texts[9] + texts[10][:1]  # begins in one token and ends in another
    cut = free.text.index(stop)
    pieces = list(tiny_engine.stream(CHAT, GenerationParams(max_new_tokens=60, stop=(stop,))))
    result = pieces[-1].result
    assert result is not None
    assert result.text == free.text[:cut]
    assert result.finish_reason == "stop"
    assert len(result.trace.matched) == len(result.token_ids) < len(free.token_ids)
    shown = ""
    for piece in pieces:
        shown += piece.text
        assert free.text[:cut].startswith(shown)


def test_closing_a_stream_stops_the_decoding(tiny_engine: SSDEngine) -> None:
    stream = tiny_engine.stream(CHAT, LONG)
    next(stream)
    stream.close()
    wait_for(lambda: tiny_engine.is_idle)


# Asynchronous and concurrent use


async def test_async_methods_give_the_same_answers(tiny_engine: SSDEngine) -> None:
    params = GenerationParams(max_new_tokens=40, temperature=0.8, seed=3)
    expected = tiny_engine.generate(CHAT, params)
    assert (await tiny_engine.agenerate(CHAT, params)).token_ids == expected.token_ids
    assert "".join([piece.text async for piece in tiny_engine.astream(CHAT, params)]) == expected.text


async def test_the_event_loop_goes_on_while_an_answer_is_made(tiny_engine: SSDEngine) -> None:
    ticks = 0
    task = asyncio.create_task(tiny_engine.agenerate(CHAT, GenerationParams(max_new_tokens=200)))
    while not task.done():
        await asyncio.sleep(0)
        ticks += 1
    assert ticks > 200


async def test_cancelling_a_task_stops_its_decoding(tiny_engine: SSDEngine) -> None:
    started = asyncio.Event()

    async def consume() -> None:
        async for _ in tiny_engine.astream(CHAT, LONG):
            started.set()

    task = asyncio.create_task(consume())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(wait_for, lambda: tiny_engine.is_idle)


def conversations(count: int) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": f"Question {i}: " + "why? " * i}] for i in range(count)]


def test_threads_do_not_see_each_others_tokens(tiny_engine: SSDEngine) -> None:
    params = GenerationParams(max_new_tokens=30, temperature=0.9, seed=11)
    prompts = conversations(8)
    alone = [tiny_engine.generate(prompt, params).token_ids for prompt in prompts]
    together: dict[int, list[int]] = {}

    def ask(index: int) -> None:
        together[index] = tiny_engine.generate(prompts[index], params).token_ids

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(8)] == alone


async def test_tasks_do_not_see_each_others_tokens(tiny_engine: SSDEngine) -> None:
    params = GenerationParams(max_new_tokens=30, temperature=0.9, seed=11)
    prompts = conversations(8)
    alone = [tiny_engine.generate(prompt, params).token_ids for prompt in prompts]
    together = await asyncio.gather(*(tiny_engine.agenerate(prompt, params) for prompt in prompts))
    assert [result.token_ids for result in together] == alone


def results(outcomes: list) -> list[list[int] | type]:
    return [o.token_ids if isinstance(o, GenerationResult) else type(o) for o in outcomes]


async def test_one_bad_prompt_in_a_batch_fails_alone_and_in_its_place(tiny_engine: SSDEngine) -> None:
    params = GenerationParams(max_new_tokens=10)
    good = conversations(3)
    prompts = [good[0], [], good[1], [{"role": "wizard", "content": "x"}], good[2]]
    expected = [tiny_engine.generate(prompt, params).token_ids for prompt in good]
    expected = [expected[0], InvalidRequestError, expected[1], InvalidRequestError, expected[2]]
    assert results(tiny_engine.batch(prompts, params)) == expected
    assert results(await tiny_engine.abatch(prompts, params)) == expected


# Errors


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GenerationParams(temperature=-0.1), "temperature=-0.1"),
        (lambda: GenerationParams(top_p=0), "top_p=0"),
        (lambda: GenerationParams(top_p=1.2), "top_p=1.2"),
        (lambda: GenerationParams(top_k=0), "top_k=0"),
        (lambda: GenerationParams(max_new_tokens=0), "max_new_tokens=0"),
        (lambda: GenerationParams(stop=[""]), "empty stop string"),
        (lambda: GenerationParams(decoding="greedy"), "decoding='greedy'"),
        (lambda: GenerationParams(timeout=0), "timeout=0"),
        (lambda: GenerationParams(tempreature=1), "tempreature"),
        (lambda: SSDConfig(alpha_union=-1), "alpha_union=-1"),
        (lambda: SSDConfig(alpha_intersection=-0.5), "alpha_intersection=-0.5"),
        (lambda: SSDConfig(bin_size=0), "bin_size=0"),
        (lambda: SSDConfig(num_draft_tokens=0), "num_draft_tokens=0"),
        (lambda: SSDConfig(sample_space_size=0), "sample_space_size=0"),
        (lambda: SSDConfig(match_threshold=1.5), "match_threshold=1.5"),
    ],
)
def test_an_unusable_setting_is_named_with_its_value(make: Callable[[], object], said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        make()


def test_prompts_that_cannot_be_used_are_refused_and_cost_nothing(tiny_engine: SSDEngine) -> None:
    params = GenerationParams(max_new_tokens=10)
    expected = tiny_engine.generate(CHAT, params).token_ids
    for prompt, said in [("", "no tokens"), ([], "empty"), ([5, 100_000], "100000"), ([-1], "-1")]:
        with pytest.raises(InvalidRequestError, match=said):
            tiny_engine.generate(prompt, params)
    with pytest.raises(InvalidRequestError, match="tools need"):
        tiny_engine.generate("text", params, tools=[{"type": "function", "function": {"name": "f"}}])
    with pytest.raises(InvalidRequestError, match="draft_system_prompt"):
        tiny_engine.generate("text", GenerationParams(ssd=SSDConfig(draft_system_prompt="x")))
    assert tiny_engine.generate(CHAT, params).token_ids == expected


@pytest.mark.parametrize(("short", "said"), [("target", "target's context"), ("draft", "draft's context")])
def test_a_prompt_past_either_models_context_is_refused(
    short: str, said: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    target = make_model(0, len(tokenizer), context=40 if short == "target" else 80)
    draft = make_model(1, len(tokenizer), context=40 if short == "draft" else 80)
    with SSDEngine(target, draft, tokenizer) as engine:
        assert engine.context_length == 40
        with pytest.raises(ContextLengthError, match=said):
            engine.generate([3] * 41, GenerationParams(max_new_tokens=1))
        with pytest.raises(ContextLengthError, match="max_new_tokens=31"):
            engine.generate([3] * 10, GenerationParams(max_new_tokens=31))
        assert len(engine.generate([3] * 10, GenerationParams(max_new_tokens=30)).token_ids) == 30


def test_a_request_past_its_timeout_fails_alone(tiny_engine: SSDEngine) -> None:
    with pytest.raises(RequestTimeoutError, match=r"0\.01"):
        tiny_engine.generate(CHAT, GenerationParams(max_new_tokens=1500, timeout=0.01))
    assert tiny_engine.generate(CHAT, GenerationParams(max_new_tokens=3)).token_ids


def test_a_closed_engine_says_so_and_ends_what_was_running(tiny_engine: SSDEngine) -> None:
    stream = tiny_engine.stream(CHAT, LONG)
    next(stream)
    tiny_engine.close()
    tiny_engine.close()
    assert tiny_engine.is_closed
    with pytest.raises(EngineClosedError):
        list(stream)
    with pytest.raises(EngineClosedError, match="closed"):
        tiny_engine.generate(CHAT)


def test_a_model_that_fails_costs_only_its_request(tokenizer: PreTrainedTokenizerFast) -> None:
    target, draft = make_model(0, len(tokenizer)), make_model(1, len(tokenizer))
    params = GenerationParams(max_new_tokens=5)
    with SSDEngine(target, draft, tokenizer) as engine:
        expected = engine.generate([1, 2], params).token_ids

        def fail(*_: object) -> None:
            raise MemoryError("no room")

        hook = target.get_input_embeddings().register_forward_pre_hook(fail)
        with pytest.raises(MemoryError, match="no room"):
            engine.generate([1, 2], params)
        hook.remove()
        assert engine.generate([1, 2], params).token_ids == expected
