"""Caches, prefix reuse and passes of several sequences: what a model says depends on a sequence's own tokens alone."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from conftest import make_model, make_relative
from families import CAUSAL, VOCAB, WINDOWED, build
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ssd_engine import GenerationParams, SSDEngine
from ssd_engine.backends.transformers.arena import Arena
from ssd_engine.backends.transformers.kv_cache import KVCache, Snapshot
from ssd_engine.backends.transformers.prefix_store import PrefixStore, block_ends
from ssd_engine.backends.transformers.runner import ModelRunner, Row
from ssd_engine.errors import ModelLoadError

MODEL = make_model(0, VOCAB)

tokens = st.integers(0, VOCAB - 1)


def make_runner(model: PreTrainedModel = MODEL, positions: int = 2048, prefix_bytes: int = 0) -> ModelRunner:
    runner = ModelRunner(model, VOCAB)
    runner.allocate(positions, prefix_bytes)
    return runner


@torch.inference_mode()
def read_prompt(runner: ModelRunner, prompt: list[int], room: int = 64) -> Row:
    """A row whose prompt has been read, all but its last token."""
    row = runner.open(prompt, room)
    assert row is not None
    while row.next_block:
        runner.read_block(row)
    return row


@torch.inference_mode()
def read(runner: ModelRunner, rows: list[Row], guesses: list[list[int]]) -> list[torch.Tensor]:
    """Read each row's last token and some guesses, all rows in one pass; each row's logits [1 + guesses, V]."""
    parts = [[row.token_ids[-1], *guess] for row, guess in zip(rows, guesses, strict=True)]
    counts = [len(part) for part in parts]
    return list(runner.forward(rows, torch.tensor([token for part in parts for token in part]), counts).split(counts))


def plain_logits(model: PreTrainedModel, token_ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([token_ids]), use_cache=False).logits[0]


def assert_close(logits: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@given(
    st.lists(tokens, min_size=1, max_size=40),
    st.lists(st.tuples(st.lists(tokens, max_size=5), st.lists(tokens, min_size=1, max_size=5)), max_size=6),
)
@settings(max_examples=60)
def test_rolled_back_tokens_leave_no_trace(prompt: list[int], rounds: list[tuple[list[int], list[int]]]) -> None:
    """Each round reads guesses, then lets tokens stand: those guesses that are among them, and others."""
    runner = make_runner()
    row = read_prompt(runner, prompt)
    for guessed, standing in rounds:
        read(runner, [row], [guessed])
        right = 0
        while right < min(len(guessed), len(standing)) and guessed[right] == standing[right]:
            right += 1
        row.accept(standing[: right + 1])  # as a round does: the right guesses and one token more
    assert_close(read(runner, [row], [[]])[0][-1], plain_logits(MODEL, row.token_ids)[-1])


@pytest.mark.parametrize(("family", "config"), [*CAUSAL, *WINDOWED])
def test_model_families_compute_together_what_they_compute_alone(family: type[PreTrainedModel], config: object) -> None:
    """Sequences of different lengths in one pass, over several rounds, against the model as transformers runs it."""
    model = build(family, config)
    prompts = [[(7 * i + start) % VOCAB for i in range(length)] for start, length in enumerate((90, 1, 33, 64))]
    plain = [plain_logits(model, prompt)[-1] for prompt in prompts]
    runner = make_runner(model)
    rows = [read_prompt(runner, prompt) for prompt in prompts]
    for step in range(6):
        guesses = [[step, 2, 3][: (index + step) % 4] for index in range(len(rows))]
        for index, (row, guess, logits) in enumerate(zip(rows, guesses, read(runner, rows, guesses), strict=True)):
            if step == 0:
                assert_close(logits[0], plain[index])
            assert_close(logits, plain_logits(model, [*row.token_ids, *guess])[-len(logits) :])
            row.accept([*guess[: step % 3], step])


def test_a_model_that_an_engine_has_taken_over_still_works_by_itself() -> None:
    model = make_model(3, VOCAB)
    prompt = torch.tensor([[5, 6, 7, 8], [1, 2, 3, 4]])
    expected = model.generate(prompt, max_new_tokens=12, do_sample=False).tolist()
    make_runner(model)
    assert model.generate(prompt, max_new_tokens=12, do_sample=False).tolist() == expected


def test_a_recurrent_model_is_refused() -> None:
    model = MambaForCausalLM(MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(ModelLoadError, match=r"mamba.* use a model with attention layers only"):
        ModelRunner(model, VOCAB)


def test_a_family_that_computes_attention_by_itself_is_refused() -> None:
    model = BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(ModelLoadError, match=r"bloom.* such as Llama"):
        ModelRunner(model, VOCAB)


@given(st.integers(1, 2000))
def test_blocks_leave_the_last_token(length: int) -> None:
    ends = block_ends(length, (64, 16))
    assert ends == sorted(set(ends))
    assert (ends[-1] if ends else 0) == length - 1


def test_a_prompt_read_again_is_reused_but_for_its_last_token() -> None:
    runner = make_runner(prefix_bytes=1 << 20)
    prompt = [i % VOCAB for i in range(150)]
    assert read_prompt(runner, prompt).cached_prompt_tokens == 0
    assert read_prompt(runner, prompt).cached_prompt_tokens == 149
    assert read_prompt(runner, [*prompt, *prompt]).cached_prompt_tokens == 128
    assert read_prompt(runner, [5, *prompt]).cached_prompt_tokens == 0


def test_reused_prefixes_give_the_very_same_bits() -> None:
    prompt = [i % VOCAB for i in range(150)]
    fresh = make_runner()
    cold = read(fresh, [read_prompt(fresh, prompt)], [[1]])[0]
    runner = make_runner(prefix_bytes=1 << 20)
    read_prompt(runner, prompt[:140])
    row = read_prompt(runner, prompt)
    assert row.cached_prompt_tokens > 0
    assert torch.equal(read(runner, [row], [[1]])[0], cold)


@torch.inference_mode()
def test_a_prompt_that_begins_like_another_in_the_same_pass_waits_and_reuses_what_that_one_has_read() -> None:
    runner = make_runner(prefix_bytes=1 << 20)
    shared = [i % VOCAB for i in range(64)]
    prompts = [[*shared, *[number] * 40] for number in (1, 2)]
    rows = [row for prompt in prompts if (row := runner.open(prompt, 4)) is not None]
    while any(row.num_unread_blocks for row in rows):
        runner.read_blocks([rows[0], rows[1], rows[0], rows[1]])
    assert [row.cached_prompt_tokens for row in rows] == [0, 64]
    for row, prompt in zip(rows, prompts, strict=True):
        assert_close(read(runner, [row], [[1]])[0], plain_logits(MODEL, [*prompt, 1])[-2:])


@torch.inference_mode()
def test_a_prompt_that_waits_reuses_more_than_was_kept_when_it_came() -> None:
    runner = make_runner(prefix_bytes=1 << 20)
    shared = [i % VOCAB for i in range(128)]
    read_prompt(runner, shared[:33])
    rows = [row for last in (1, 2) if (row := runner.open([*shared, *[last] * 40], 4)) is not None]
    while any(row.num_unread_blocks for row in rows):
        runner.read_blocks([rows[0], rows[1]])
    assert [row.cached_prompt_tokens for row in rows] == [32, 128]


@torch.inference_mode()
def test_a_prompt_of_which_some_was_read_does_not_wait_for_what_it_cannot_reuse() -> None:
    runner = make_runner(prefix_bytes=1 << 20)
    rows = [row for _ in range(2) if (row := runner.open([i % VOCAB for i in range(150)], 4)) is not None]
    for row in rows:
        runner.read_block(row)
    runner.read_blocks(rows)
    assert [row.length for row in rows] == [64, 64]


def test_the_least_recently_used_prefix_goes_first() -> None:
    runner = make_runner()
    one, two, three = ([start] * 100 for start in (1, 2, 3))
    runner.prefixes.max_bytes = 1 << 30
    read_prompt(runner, one)
    runner.prefixes.max_bytes = 2 * runner.prefixes.nbytes
    read_prompt(runner, two)
    read_prompt(runner, one)
    read_prompt(runner, three)
    assert runner.prefixes.nbytes <= runner.prefixes.max_bytes
    assert read_prompt(runner, one).cached_prompt_tokens > 0
    assert read_prompt(runner, three).cached_prompt_tokens > 0
    assert read_prompt(runner, two).cached_prompt_tokens == 0


# Prefixes and the bounds of their store


BYTES_PER_TOKEN = ModelRunner(MODEL, VOCAB).bytes_per_position


def bytes_of(num_tokens: int) -> int:
    """What keys and values of so many tokens take in `MODEL`."""
    return num_tokens * BYTES_PER_TOKEN


def cached(runner: ModelRunner, prompt: list[int]) -> int:
    """Tokens of a prompt that were reused; its row makes room for the next."""
    row = read_prompt(runner, prompt)
    runner.close(row)
    return row.cached_prompt_tokens


def test_a_prefix_larger_than_the_store_leaves_the_others_there() -> None:
    runner = make_runner(prefix_bytes=bytes_of(100))
    small, large = [1] * 61, [2] * 400
    cached(runner, small)
    cached(runner, large)
    assert cached(runner, small) == 60
    assert runner.prefixes.nbytes <= runner.prefixes.max_bytes


def test_of_a_prefix_larger_than_the_store_the_beginning_is_kept() -> None:
    """As a conversation that has grown too long for it: what fits is reused, to the very same bits."""
    prompt = [i % VOCAB for i in range(400)]
    fresh = make_runner()
    cold = read(fresh, [read_prompt(fresh, prompt)], [[1]])[0]
    runner = make_runner(prefix_bytes=bytes_of(150))
    assert cached(runner, prompt) == 0
    row = read_prompt(runner, prompt)
    assert row.cached_prompt_tokens == 128  # whole blocks of 32
    assert torch.equal(read(runner, [row], [[1]])[0], cold)


def test_the_next_long_prompt_takes_the_place_of_the_last_ones_beginning() -> None:
    runner = make_runner(prefix_bytes=bytes_of(200))
    small, one, two = [1] * 61, [2] * 400, [3] * 400
    for prompt in (small, one, two):
        cached(runner, prompt)
    assert cached(runner, two) == 128  # 200 - 60, in whole blocks
    assert cached(runner, one) == 0
    assert cached(runner, small) == 60


def test_a_conversation_that_outgrows_the_store_keeps_what_it_had() -> None:
    runner = make_runner(prefix_bytes=bytes_of(150))
    turns = [[i % VOCAB for i in range(length)] for length in (65, 129, 161, 401, 801)]
    assert [cached(runner, turn) for turn in turns] == [0, 64, 128, 128, 128]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 250)), max_size=12))
@settings(max_examples=10)
def test_the_store_is_never_larger_than_it_may_be_and_knows_its_size(prompts: list[tuple[int, int]]) -> None:
    """Not even while a copy is made: what is given up for it has been let go."""
    runner = make_runner(prefix_bytes=bytes_of(200))
    copies: list[weakref.ref[Snapshot]] = []
    snapshot = runner.cache.snapshot

    def num_bytes() -> int:
        return sum(made.nbytes for made in (copy() for copy in copies) if made is not None)

    def noted(stretch: range) -> Snapshot:
        assert num_bytes() + bytes_of(len(stretch)) <= runner.prefixes.max_bytes
        made = snapshot(stretch)
        copies.append(weakref.ref(made))
        return made

    runner.cache.snapshot = noted
    for start, length in prompts:
        cached(runner, [start] * length)
        assert runner.prefixes.nbytes == num_bytes() <= runner.prefixes.max_bytes


def test_keeping_prefixes_looks_at_the_size_of_each_a_few_times_alone() -> None:
    """However many are there: not once more at every addition."""
    looks = 0

    class Sized(Snapshot):
        @property
        def nbytes(self) -> int:
            nonlocal looks
            looks += 1
            return 10

    store = PrefixStore(max_bytes=500)
    for number in range(200):
        store.keep([number] * 10, [10], 1, lambda _: Sized((), ()))
    assert store.nbytes == 500
    assert looks <= 3 * 200


@pytest.mark.parametrize("room", [0, 10])
def test_where_a_prefix_cannot_be_kept_no_copy_of_it_is_made(room: int, tokenizer: PreTrainedTokenizerFast) -> None:
    """Nor is memory for one needed: here there is none."""
    target = make_model(1, len(tokenizer))
    with SSDEngine(target, make_relative(target, 2, 0.1), tokenizer, prefix_cache_bytes=room) as engine:
        with without_memory_for_copies() as asked:
            engine.generate([9] * 100, GenerationParams(max_new_tokens=4))
        assert asked == []


def test_a_prompt_is_answered_where_memory_for_keeping_its_prefix_is_wanting(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    target = make_model(1, len(tokenizer))
    params = GenerationParams(max_new_tokens=4)
    with SSDEngine(target, make_relative(target, 2, 0.1), tokenizer) as engine:
        with without_memory_for_copies() as asked:
            first = engine.generate([9] * 100, params)
        assert asked
        assert "a prompt's first 99 tokens could not be kept for later ones: out of memory" in caplog.text
        again, last = engine.generate([9] * 100, params), engine.generate([9] * 100, params)
    assert first.token_ids == again.token_ids == last.token_ids
    assert [answer.usage.cached_prompt_tokens for answer in (first, again, last)] == [0, 0, 99]


@contextmanager
def without_memory_for_copies() -> Iterator[list[range]]:
    """Copies of the cache fail, as they do where memory has run out; gives the stretches that were asked for."""
    asked: list[range] = []

    def fail(cache: KVCache, stretch: range) -> Snapshot:
        asked.append(stretch)
        raise torch.OutOfMemoryError("out of memory")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KVCache, "snapshot", fail)
        yield asked


@given(st.lists(st.one_of(st.integers(1, 40), st.none()), max_size=60), st.randoms(use_true_random=False))
def test_stretches_never_overlap_and_are_found_where_they_fit(lengths: list[int | None], random: object) -> None:
    """Take and give back (None) in any order."""
    arena = Arena(100)
    held: list[range] = []
    for length in lengths:
        if length is None:
            if held:
                arena.give_back(held.pop(random.randrange(len(held))))
            continue
        taken = {position for stretch in held for position in stretch}
        fits = any(not taken & set(range(start, start + length)) for start in range(100 - length + 1))
        stretch = arena.take(length)
        assert (stretch is not None) == fits
        if stretch is not None:
            assert len(stretch) == length
            assert not taken & set(stretch)
            assert stretch.stop <= 100
            held.append(stretch)
