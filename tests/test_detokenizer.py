"""Ids -> text pieces: exactly the decoded text, whole characters only, at bounded cost; stop strings across pieces."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ssd_engine.answers.detokenizer import Detokenizer, StopStrings

TEXTS = [
    "The quick brown fox jumps over the lazy dog.\n\n  def f(x):\n\treturn x  # two  spaces",
    "Grüße aus Köln! Ça va très bien, naïve café. Добрый день",
    "你好,世界。今日は世界 안녕하세요 🙂🎉👩‍💻 नमस्ते",
]
SPECIAL = ["<|end|>", "<|call|>"]


@cache
def byte_level() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as of Qwen and Llama-3: characters lie across tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(tokenizer, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False))
    return _wrap(tokenizer)


@cache
def metaspace() -> PreTrainedTokenizerFast:
    """Metaspace: the first token of a text loses its leading space."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    _train(tokenizer, trainers.UnigramTrainer(vocab_size=150, unk_token="<unk>", show_progress=False))
    return _wrap(tokenizer)


@cache
def byte_fallback() -> PreTrainedTokenizerFast:
    """SentencePiece BPE as of Llama-2 and Mistral: unknown characters become runs of byte tokens such as <0xF0>."""
    words = ["▁", "▁the", "▁fox", "fox", "▁▁", ".", "e", "é", "ß", "▁世", "\n"]
    vocabulary = {token: i for i, token in enumerate([f"<0x{byte:02X}>" for byte in range(256)] + words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?=▁)"), "isolated")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrap(tokenizer)


def _train(tokenizer: Tokenizer, trainer: Any) -> None:
    tokenizer.train_from_iterator(TEXTS, trainer)


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    wrapped.add_special_tokens({"additional_special_tokens": SPECIAL})
    return wrapped


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": byte_level,
    "metaspace": metaspace,
    "byte-fallback": byte_fallback,
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def decode(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def pieces(tokenizer: Any, ids: Sequence[int], hidden: Sequence[int] = ()) -> list[str]:
    detokenizer = Detokenizer(tokenizer, hidden)
    return [*map(detokenizer.feed, ids), detokenizer.finish()]


@each_kind
@given(data=st.data())
def test_the_pieces_of_any_ids_are_the_decoded_text(kind: str, data: st.DataObject) -> None:
    tokenizer = KINDS[kind]()
    # Past the vocabulary's end lie the ids that only the padded embedding matrix has.
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) + 3), max_size=300))
    hidden = data.draw(st.sets(st.integers(0, len(tokenizer) + 3), max_size=5))
    assert "".join(pieces(tokenizer, ids, list(hidden))) == decode(tokenizer, [i for i in ids if i not in hidden])


@each_kind
@pytest.mark.parametrize("seed", range(5))
def test_the_pieces_of_a_long_answer_are_the_decoded_text(kind: str, seed: int) -> None:
    tokenizer = KINDS[kind]()
    rng = random.Random(seed)
    narrow = rng.sample(range(len(tokenizer)), 12)
    ids = [rng.randrange(len(tokenizer)) if rng.random() < 0.1 * seed else rng.choice(narrow) for _ in range(3000)]
    assert "".join(pieces(tokenizer, ids)) == decode(tokenizer, ids)


@each_kind
@given(data=st.data())
def test_written_text_comes_in_whole_characters(kind: str, data: st.DataObject) -> None:
    tokenizer = KINDS[kind]()
    characters = st.characters(exclude_categories=["Cs"], exclude_characters="▁\ufffd") | st.sampled_from(TEXTS[2])
    ids = tokenizer(data.draw(st.text(characters, max_size=100)), add_special_tokens=False).input_ids
    given_pieces = pieces(tokenizer, ids)
    assert "".join(given_pieces) == decode(tokenizer, ids)
    assert "\ufffd" not in "".join(given_pieces)


def test_a_character_of_several_tokens_comes_with_its_last_one() -> None:
    tokenizer = byte_level()
    characters = "".join(part for part, _ in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("a🦊b"))
    ids = tokenizer.convert_tokens_to_ids(list(characters))
    assert pieces(tokenizer, ids) == ["a", "", "", "", "🦊", "b", ""]


@pytest.mark.parametrize("start", range(5))
def test_characters_among_stray_bytes_stay_whole_in_a_long_answer(start: int) -> None:
    tokenizer = byte_level()
    # The bytes 98 F0 9F 98 82: a stray one, and a character that may be mistaken for more of them when cut.
    unit = tokenizer.convert_tokens_to_ids([*"ĺðŁĺĤ"])
    ids = [*unit[start:], *unit * 100]
    assert "".join(pieces(tokenizer, ids)) == decode(tokenizer, ids)
    assert decode(tokenizer, unit) == "\ufffd😂"


def test_a_run_of_byte_tokens_is_given_when_it_has_ended_for_one_bad_byte_spoils_it() -> None:
    tokenizer = byte_fallback()
    fox = [*"🦊".encode()]
    the = tokenizer.convert_tokens_to_ids("▁the")
    assert pieces(tokenizer, [*fox, the]) == ["", "", "", "", "🦊 the", ""]
    assert pieces(tokenizer, [*fox, 0xFF, the]) == ["", "", "", "", "", "\ufffd" * 5 + " the", ""]
    assert pieces(tokenizer, fox) == ["", "", "", "", "🦊"]


def test_a_character_cut_off_at_the_end_is_marked_as_such() -> None:
    tokenizer = byte_level()
    assert "".join(pieces(tokenizer, tokenizer("🦊").input_ids[:-1])) == "\ufffd"


@each_kind
def test_hidden_ids_add_no_text(kind: str) -> None:
    tokenizer = KINDS[kind]()
    end, call = tokenizer.convert_tokens_to_ids(SPECIAL)
    fox = tokenizer("the fox", add_special_tokens=False).input_ids
    assert "".join(pieces(tokenizer, [end, *fox, call, end], [end])) == decode(tokenizer, [*fox, call])


class CountingTokenizer:
    """A tokenizer that counts the ids it decodes."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.decoded = 0

    def convert_ids_to_tokens(self, token_id: int) -> str | None:
        return self.tokenizer.convert_ids_to_tokens(token_id)

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        self.decoded += len(ids)
        return self.tokenizer.decode(ids, **options)


@each_kind
@pytest.mark.parametrize("length", [1000, 4000])
def test_the_cost_of_a_token_does_not_grow_with_the_answer(kind: str, length: int) -> None:
    tokenizer = KINDS[kind]()
    rng = random.Random(0)
    # The first byte of a character that never comes; for Metaspace, which has no bytes, a space.
    bad_byte = {"byte-level": "ä", "byte-fallback": "<0xE4>", "metaspace": "▁"}[kind]
    written = tokenizer(" ".join(TEXTS), add_special_tokens=False).input_ids
    answers = {
        "written": (written * length)[:length],
        "random": [rng.randrange(len(tokenizer)) for _ in range(length)],
        "one bad byte": [tokenizer.convert_tokens_to_ids(bad_byte)] * length,
    }
    for name, ids in answers.items():
        counting = CountingTokenizer(tokenizer)
        pieces(counting, ids)
        assert counting.decoded < 80 * length, name


STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=4).map(tuple)


def expected_text(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    first = min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)
    return (text, False) if first is None else (text[:first], True)


@given(st.lists(st.text("abcd", max_size=5), max_size=20), STOPS)
def test_the_text_before_the_first_stop_string_is_given_however_it_is_cut(
    parts: list[str], stops: tuple[str, ...]
) -> None:
    text, found = expected_text("".join(parts), stops)
    stop_strings = StopStrings(stops)
    given_text = "".join([*map(stop_strings.feed, parts), stop_strings.finish()])
    assert (given_text, stop_strings.found) == (text, found)


@given(st.text("abcd", max_size=20), st.text("abcd", max_size=20), STOPS)
def test_text_is_given_at_once_unless_a_stop_string_could_take_it_back(
    text: str, continuation: str, stops: tuple[str, ...]
) -> None:
    stop_strings = StopStrings(stops)
    given_text = stop_strings.feed(text)
    assert expected_text(text + continuation, stops)[0].startswith(given_text)
    held = text[len(given_text) :]
    assert stop_strings.found or not held or any(stop.startswith(held) for stop in stops)


def test_a_stop_string_is_found_across_pieces_and_ends_the_text() -> None:
    stop_strings = StopStrings(("</answer>", "\n\n"))
    parts = ["42 <", "/ans", "wer", " </ans", "wer> more", "\n"]
    assert [stop_strings.feed(part) for part in parts] == ["42 ", "", "", "</answer ", "", ""]
    assert stop_strings.found
    assert stop_strings.finish() == ""


def test_the_stop_string_that_starts_first_wins() -> None:
    longer_first = StopStrings(("b", "abc"))
    assert [longer_first.feed(part) for part in ["x", "ab", "c"]] == ["x", "", ""]
    assert longer_first.found
    longer_fails = StopStrings(("b", "abc"))
    assert [longer_fails.feed(part) for part in ["x", "ab", "d"]] == ["x", "", "a"]
    assert longer_fails.found
    at_the_end = StopStrings(("b", "abc"))
    assert (at_the_end.feed("xab"), at_the_end.finish(), at_the_end.found) == ("x", "a", True)


def test_the_beginning_of_a_stop_string_at_the_end_of_the_answer_is_text() -> None:
    stop_strings = StopStrings(("<end>",))
    assert (stop_strings.feed("1 <en"), stop_strings.finish(), stop_strings.found) == ("1 ", "<en", False)


def test_without_stop_strings_text_passes() -> None:
    stop_strings = StopStrings(())
    assert (stop_strings.feed("all of it"), stop_strings.finish(), stop_strings.found) == ("all of it", "", False)
