"""Pairs of two vocabularies: one text in both models' tokens, and the draft's word on the target's next token."""

from __future__ import annotations

import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import reference
import torch
from bridge_cases import TEXT, NaiveBridge, as_logits, bridge_of, byte_level, sentence_piece
from conftest import make_model, make_tokenizer
from scipy.stats import chisquare
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ssd_engine import GenerationParams, Scheme, SSDConfig, SSDEngine
from ssd_engine.bridge.between import vocabulary
from ssd_engine.bridge.bridge import Bridge
from ssd_engine.bridge.crossing import BOUNDARY
from ssd_engine.config import Grammar, SignalConfig
from ssd_engine.errors import InvalidRequestError, VocabularyMismatchError
from ssd_engine.rule.draft_signals import DraftSignals

CHAT = [{"role": "user", "content": "What is the capital of France?"}]
Sides = tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]


@pytest.fixture(scope="module")
def sides() -> Sides:
    """Of a target and a draft: the draft's has all tokens of the target's and longer ones, and the other way round."""
    return byte_level(340, TEXT[:3]), byte_level(400, TEXT[2:])


@pytest.fixture(scope="module")
def pair(sides: Sides) -> tuple[PreTrainedModel, PreTrainedModel]:
    target, draft = sides
    return make_model(5, len(target)), make_model(6, len(draft), hidden_size=16)


def engine_of(pair: tuple[PreTrainedModel, PreTrainedModel], sides: Sides, **options: object) -> SSDEngine:
    return SSDEngine(*pair, *sides, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(12))
def test_what_is_carried_is_the_draft_s_next_text_in_the_target_s_tokens(seed: int, sides: Sides) -> None:
    """Against every way to cut the answer into tokens of the draft's."""
    bridge, naive = bridge_of(*sides), NaiveBridge(*sides)
    draft = make_model(seed, len(sides[1]), hidden_size=16)
    rng = random.Random(seed)
    answer: list[int] = []
    crossing = BOUNDARY
    for _ in range(7):
        expected = naive.carried(draft, [1, 2], answer, len(sides[0]))
        read = [1, 2, *bridge.readings(answer)]
        p = torch.tensor(reference.next_probabilities(draft, read, len(sides[1])))
        carried = bridge.carry(p[None], [crossing])[0]
        torch.testing.assert_close(carried, torch.tensor(expected), atol=2e-4, rtol=1e-3)
        likely = sorted(range(len(expected)), key=lambda i: -expected[i])[:4]
        token_id = rng.choice([i for i in likely if i != sides[0].eos_token_id])
        crossing = bridge.go_on(crossing, p, token_id)
        answer.append(token_id)


def test_the_two_vocabularies_of_these_tests_are_two(sides: Sides) -> None:
    """Tokens on both sides that the other lacks, with spellings of several tokens."""
    naive = NaiveBridge(*sides)
    assert sum(len(spelling) > 1 for spelling in naive.spellings.values()) > 20
    assert sum(len(naive.read(i)) > 1 for i in range(3, len(sides[0]))) > 20


@pytest.mark.parametrize("seed", range(8))
def test_greedy_answers_equal_the_naive_reference(seed: int, sides: Sides) -> None:
    target, draft = make_model(seed, len(sides[0])), make_model(50 + seed, len(sides[1]), hidden_size=16)
    config = SSDConfig(
        num_draft_tokens=seed % 4 + 1, sample_space_size=(5, 10)[seed % 2], bin_size=3, alpha_intersection=0.9
    )
    naive = NaiveBridge(*sides)
    prompt, draft_prompt = [7, 8, 9, 200], [11, 12, 300]

    def carried(answer: list[int]) -> list[float]:
        return as_logits(naive.carried(draft, draft_prompt, answer, len(sides[0])))

    expected = reference.run(target, draft, prompt, draft_prompt, config, 9, {sides[0].eos_token_id}, carried)
    with engine_of((target, draft), sides, config=config) as engine:
        result = engine.generate(prompt, GenerationParams(max_new_tokens=9), draft_prompt)
    assert result.token_ids == expected.token_ids
    assert result.trace.matched == expected.matched
    assert result.trace.schemes == expected.schemes
    assert result.trace.rounds == expected.rounds


@pytest.mark.parametrize("num_draft_tokens", [1, 3, "auto"])
def test_every_sampled_token_is_distributed_as_the_composite_of_target_and_what_is_carried(
    num_draft_tokens: int | str, pair: tuple[PreTrainedModel, PreTrainedModel], sides: Sides
) -> None:
    """The second token after the commonest first one, in whose middle tokens of the draft's may be under way."""
    config = SSDConfig(sample_space_size=8, num_draft_tokens=num_draft_tokens, alpha_intersection=0.9)
    prompt = [5, 6, 7]
    with engine_of(pair, sides, config=config, max_batch_size=64) as engine:
        params = GenerationParams(max_new_tokens=2, temperature=1.0)

        def answer(seed: int) -> list[int]:
            return engine.generate(prompt, params.replaced(seed=seed)).token_ids

        with ThreadPoolExecutor(64) as callers:
            answers = list(callers.map(answer, range(4000)))
    naive, size = NaiveBridge(*sides), len(sides[0])
    first = Counter(answer[0] for answer in answers).most_common(1)[0][0]
    for given, seen in ([], Counter(a[0] for a in answers)), ([first], Counter(a[1] for a in answers if a[0] == first)):
        p_target = reference.next_probabilities(pair[0], prompt + given, size)
        p_draft = naive.carried(pair[1], prompt_read(naive, prompt), given, size)
        values = reference.composite_distribution(p_target, p_draft, Scheme.INTERSECTION, config)
        assert set(seen) <= set(values)
        likely = [i for i in values if values[i] > 0.01]
        assert len(likely) > 2
        total, share = sum(seen[i] for i in likely), sum(values[i] for i in likely)
        assert chisquare([seen[i] for i in likely], [values[i] / share * total for i in likely]).pvalue > 1e-4


def prompt_read(naive: NaiveBridge, prompt: list[int]) -> list[int]:
    return [i for token_id in prompt for i in naive.read(token_id)]


def permuted(tokenizer: PreTrainedTokenizerFast, seed: int) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """The same tokens under other ids, and the new id of each old one; control tokens keep theirs."""
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    fixed = {token["id"] for token in description["added_tokens"]}
    movable = [i for i in range(len(tokenizer)) if i not in fixed]
    places = random.Random(seed).sample(movable, len(movable))
    new_id = list(range(len(tokenizer)))
    for old, new in zip(movable, places, strict=True):
        new_id[old] = new
    description["model"]["vocab"] = {token: new_id[i] for token, i in description["model"]["vocab"].items()}
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(description)), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    other.chat_template = tokenizer.chat_template
    return other, new_id


def test_a_draft_of_the_same_tokens_under_other_ids_gives_the_answers_that_it_gives_under_the_target_s(
    sides: Sides,
) -> None:
    params = GenerationParams(max_new_tokens=40)
    tokenizer = sides[0]
    target, draft = make_model(1, len(tokenizer)), make_model(2, len(tokenizer), hidden_size=16)
    with SSDEngine(target, draft, tokenizer) as engine:
        expected = engine.generate(CHAT, params)
    assert not expected.trace.bridge_mass
    other, new_id = permuted(tokenizer, 7)
    with torch.no_grad():
        for module in (draft.get_input_embeddings(), draft.get_output_embeddings()):
            weight = module.weight.clone()
            module.weight[torch.tensor(new_id)] = weight
    with SSDEngine(target, draft, tokenizer, other) as engine:
        result = engine.generate(CHAT, params)
    assert result.token_ids == expected.token_ids
    assert result.trace.matched == expected.trace.matched
    assert max(result.trace.bridge_mass) < 0.1  # of control tokens alone


def test_an_answer_depends_neither_on_drafts_nor_on_company_nor_on_guesses(
    pair: tuple[PreTrainedModel, PreTrainedModel], sides: Sides
) -> None:
    answers = []
    for num_draft_tokens in (1, 2, 5, "auto"):
        with engine_of(pair, sides, config=SSDConfig(num_draft_tokens=num_draft_tokens)) as engine:
            params = GenerationParams(max_new_tokens=60, temperature=0.7, seed=11)
            prompts = [CHAT, [{"role": "user", "content": "the capital of France is the capital of"}], CHAT]
            alone = [engine.generate(prompt, params) for prompt in prompts]
            together = engine.batch(prompts, params)
            streamed = [token_id for piece in engine.stream(CHAT, params) for token_id in piece.token_ids]
        assert [r.token_ids for r in alone] == [r.token_ids for r in together]  # type: ignore[union-attr]
        assert streamed == alone[0].token_ids
        assert "".join(alone[0].trace.texts) == alone[0].text
        assert len(alone[0].trace.bridge_mass) == len(alone[0].token_ids)
        answers.append([(r.token_ids, r.trace.matched) for r in alone])
    assert answers == [answers[0]] * len(answers)


def test_a_grammar_holds_and_its_forced_tokens_are_read_in_the_draft_s_tokens(
    pair: tuple[PreTrainedModel, PreTrainedModel], sides: Sides
) -> None:
    schema = {
        "type": "object",
        "properties": {"capital": {"enum": ["Paris", "Köln"]}, "course": {"type": "boolean"}},
        "required": ["capital", "course"],
        "additionalProperties": False,
    }
    params = GenerationParams(
        max_new_tokens=60, grammar=Grammar(json_schema=schema), logprobs=True, temperature=0.8, seed=1
    )
    with engine_of(pair, sides) as engine:
        result = engine.generate(CHAT, params)
        again = engine.generate(CHAT, params.replaced(seed=1))
    assert json.loads(result.text)["capital"] in ("Paris", "Köln")
    assert any(result.trace.forced)
    assert len(result.trace.bridge_mass) == len(result.token_ids) == len(result.logprobs or ())
    assert again.token_ids == result.token_ids
    assert again.usage.cached_prompt_tokens > 0 or again.usage.prompt_tokens < 33


def test_a_refusal_that_the_draft_begins_is_seen_and_finished(
    pair: tuple[PreTrainedModel, PreTrainedModel], sides: Sides
) -> None:
    """Signals are read from the draft's own tokens, and the refusal's first token is known again in the target's."""
    config = SSDConfig(alpha_union=30.0, signals=SignalConfig(kl=0.0))
    params = GenerationParams(max_new_tokens=8)
    with engine_of(pair, sides, config=config) as engine:
        first = engine.generate(CHAT, params).token_ids[0]  # under Union
    begin_it = tuple(i for i, spelling in NaiveBridge(*sides).spellings.items() if spelling[0] == first)
    config = config.replaced(signals=SignalConfig(refusal_mass=1e-5, hold=1))
    with engine_of(pair, sides, config=config, signals=DraftSignals(refusal_ids=begin_it)) as engine:
        result = engine.generate(CHAT, params)
    assert result.token_ids[0] == first
    assert result.trace.alarms[0].place == 0
    assert result.trace.union_share == 1.0  # an alarm holds for one token, a refusal to its end


@pytest.mark.parametrize(
    ("target", "draft"),
    [
        (partial(byte_level, 340), partial(sentence_piece, 420)),
        (partial(sentence_piece, 420), partial(byte_level, 400)),
        (partial(sentence_piece, 420), partial(sentence_piece, 380, prepends=True)),
    ],
)
@pytest.mark.parametrize(
    "text",
    [
        " leading space",
        "  two spaces  and a tab\t\n\n",
        "Grüße, 你好 🙂👩‍💻 naïve",
        "<|im_end|> and <tool_call> as text",
        'def f():\n    return {"a": 1}\n',
    ],
)
def test_the_draft_reads_the_text_that_the_target_writes(text: str, target: partial, draft: partial) -> None:  # type: ignore[type-arg]
    """Byte for byte, partial characters and byte fallbacks included, and never in control tokens."""
    tokenizers = target(), draft()
    bridge = bridge_of(*tokenizers)
    written = tokenizers[0].backend_tokenizer.encode(text, add_special_tokens=False)
    plain = [i for i in written.ids if i not in tokenizers[0].all_special_ids]
    known = bridge.target_bytes, bridge.draft_bytes
    for token_id in plain:
        read = bridge.reading(token_id)
        assert b"".join(known[1][i] or b"" for i in read) == known[0][token_id]
        assert not set(read) & set(tokenizers[1].all_special_ids)


def test_a_character_is_carried_to_the_token_that_writes_it_and_not_to_its_byte() -> None:
    target, draft = sentence_piece(420, prepends=True), byte_level(400)
    bridge = bridge_of(target, draft)
    full_stop = target.convert_tokens_to_ids(".")
    assert bridge.firsts(draft.encode(".", add_special_tokens=False)) == {full_stop}
    assert bridge.is_shared(full_stop)
    assert not bridge.is_shared(target.convert_tokens_to_ids("<0x2E>"))


def test_ends_of_answers_are_carried_by_their_role_and_other_control_tokens_not_at_all() -> None:
    target = byte_level(340, controls=["<pad>", "<start_of_turn>", "<end_of_turn>"])
    draft = byte_level(400)
    bridge = bridge_of(target, draft)
    p = torch.zeros(1, len(draft))
    p[0, draft.eos_token_id], p[0, 1], p[0, 40] = 0.5, 0.3, 0.2  # the second begins messages
    carried = bridge.carry(p, [BOUNDARY])[0]
    assert float(carried[target.eos_token_id]) == pytest.approx(0.5 / 0.7)
    assert float(carried.sum()) == pytest.approx(1.0)
    assert float(bridge.lacking_mass(p)[0]) == pytest.approx(0.3)
    assert bridge.reading(target.eos_token_id) == (draft.eos_token_id,)
    turn = target.convert_tokens_to_ids("<start_of_turn>")
    spelled = b"".join(bridge.draft_bytes[i] or b"" for i in bridge.reading(turn))
    assert spelled == b"<start_of_turn>"  # text for the draft, which has no such token


def test_token_ids_as_a_prompt_are_the_target_s(pair: tuple[PreTrainedModel, PreTrainedModel], sides: Sides) -> None:
    text = "The lazy dog. What is the capital?"
    target_ids, draft_ids = (side.encode(text, add_special_tokens=False) for side in sides)
    with engine_of(pair, sides) as engine:
        read = sides[1].decode(bridge_of(*sides).readings(target_ids))
        engine.generate(target_ids, GenerationParams(max_new_tokens=3))
        engine.generate(target_ids, GenerationParams(max_new_tokens=3), draft_ids)
    assert read == text
    other = byte_level(340, controls=["<pad>", "<start_of_turn>", "<end_of_turn>"])
    with engine_of(pair, (other, sides[1])) as engine:
        with pytest.raises(InvalidRequestError, match=r"1 \('<start_of_turn>'\) is a control token .* draft_prompt"):
            engine.generate([1, 20, 30], GenerationParams(max_new_tokens=3))
        with pytest.raises(InvalidRequestError, match="outside the target's vocabulary"):
            engine.generate([10_000], GenerationParams(max_new_tokens=3))
        assert engine.generate([20, 30], GenerationParams(max_new_tokens=3)).token_ids


def test_an_answer_that_the_draft_reads_as_many_more_tokens_goes_on(sides: Sides) -> None:
    """The draft has hardly a token but one for each byte, and its part of the cache grows."""
    target, draft = sides[0], byte_level(262)
    with engine_of((make_model(3, len(target)), make_model(4, len(draft), hidden_size=16)), (target, draft)) as engine:
        params = GenerationParams(max_new_tokens=40, grammar=Grammar(regex="( the capital of France){60}"))
        alone = engine.generate(CHAT, params)
        together = engine.batch([CHAT, CHAT], params)
    bridge = bridge_of(target, draft)
    assert len(bridge.readings(alone.token_ids)) > bridge.most_read(40)
    assert alone.text.startswith(" the capital of France the capital of France")
    assert [result.token_ids for result in together] == [alone.token_ids] * 2  # type: ignore[union-attr]


def test_tokens_that_a_tokenizer_knows_and_its_model_cannot_write_are_left_out(sides: Sides) -> None:
    target, draft = sides
    pair = make_model(3, len(target) - 20), make_model(4, len(draft) - 30, hidden_size=16)
    with engine_of(pair, sides) as engine:
        result = engine.generate([5, 6, 7], GenerationParams(max_new_tokens=30), [5, 6, 7])
    assert max(result.token_ids) < len(target) - 20
    bridge = Bridge(*(vocabulary(side, len(side) - 20, {side.eos_token_id}) for side in sides))
    assert all(i < len(draft) - 20 for token_id in range(len(target)) for i in bridge.reading(token_id))


def test_padding_that_differs_is_one_vocabulary(tokenizer: PreTrainedTokenizerFast) -> None:
    size = len(tokenizer)
    with SSDEngine(make_model(1, size + 32), make_model(2, size + 5), tokenizer) as engine:
        assert not engine.generate(CHAT, GenerationParams(max_new_tokens=5)).trace.bridge_mass


def word_piece() -> PreTrainedTokenizerFast:
    words = {"[UNK]": 0, "[END]": 1, "what": 2, "is": 3, "##s": 4}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    from tokenizers import decoders

    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[END]")


def lower_case() -> PreTrainedTokenizerFast:
    tokenizer = byte_level(400)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def foreign() -> PreTrainedTokenizerFast:
    """Byte-level in form, with no token of the others'."""
    from tokenizers import decoders

    vocabulary = {chr(0x400 + i): i for i in range(300)}
    tokenizer = Tokenizer(models.BPE(vocab={**vocabulary, "<|im_end|>": 300}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (word_piece, r"decodes with WordPiece, .* byte-level or SentencePiece"),
        (lower_case, r"changes text: [1-7] of 7 samples .* 'The quick brown fox"),
        (foreign, r"changes text|share 0 tokens"),
    ],
)
def test_a_vocabulary_that_cannot_be_bridged_is_refused_with_the_figure(
    other: object, message: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    draft = other()  # type: ignore[operator]
    models_ = make_model(1, len(tokenizer)), make_model(2, len(draft), hidden_size=16)
    with pytest.raises(VocabularyMismatchError, match=message):
        SSDEngine(*models_, tokenizer, draft)


def test_models_of_one_vocabulary_have_no_bridge() -> None:
    assert make_tokenizer().get_vocab() == make_tokenizer().get_vocab()
    tokenizer = make_tokenizer()
    with SSDEngine(make_model(1, len(tokenizer)), make_model(2, len(tokenizer)), tokenizer, make_tokenizer()) as engine:
        assert not engine.generate(CHAT, GenerationParams(max_new_tokens=5)).trace.bridge_mass
