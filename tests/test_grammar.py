"""Constrained decoding on small random models: what a grammar allows, and what it forces without a forward pass."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest
import reference
import regex
import torch
from conftest import make_model, make_relative, make_tokenizer
from pydantic import BaseModel
from scipy.stats import chisquare
from transformers import PreTrainedTokenizerFast

from ssd_engine import GenerationParams, GenerationResult, Grammar, Scheme, SSDConfig, SSDEngine
from ssd_engine.errors import InvalidRequestError
from ssd_engine.rule.scheme import SchemeController

PATTERNS = [
    "(red|green|blue)( fox| dog)*",
    "[a-f]{3,9}-[0-9]+",
    "name: [a-z ]{2,20}, weather: (sunny|rainy|snowy)!",
    "The quick (brown fox|red dog) jumps( over the (lazy dog|fence))?[.]",
]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "city": {"enum": ["Paris", "Köln", "<|im_end|>"]},
    },
    "required": ["name", "age", "city"],
}


class Person(BaseModel):
    name: str
    age: int


def grammar(pattern: str) -> GenerationParams:
    return GenerationParams(max_new_tokens=60, grammar=Grammar(regex=pattern))


class Oracle:
    """What a regular expression allows, found by trying every token."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, pattern: str, vocab: int) -> None:
        self._pattern = regex.compile(pattern)
        self._eos = tokenizer.eos_token_id
        control = {*tokenizer.all_special_ids, *tokenizer.convert_tokens_to_ids(["<|im_start|>", "<tool_call>"])}
        control.add(tokenizer.convert_tokens_to_ids("</tool_call>"))
        self.texts = {i: tokenizer.decode([i]) for i in range(min(vocab, len(tokenizer))) if i not in control}

    def allowed(self, text: str) -> set[int]:
        going_on = {i for i, piece in self.texts.items() if self._pattern.fullmatch(text + piece, partial=True)}
        return going_on | ({self._eos} if self._pattern.fullmatch(text) else set())


def masked(p: list[float], allowed: set[int]) -> list[float]:
    total = sum(p[i] for i in allowed)
    return [p[i] / total if i in allowed else 0.0 for i in range(len(p))]


@pytest.mark.parametrize("seed", range(24))
def test_greedy_ssd_under_a_grammar_equals_the_naive_rule_among_allowed_tokens(
    seed: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Token by token: what is chosen, its match, its scheme; and that nothing is forced where there is a choice."""
    pattern = PATTERNS[seed % len(PATTERNS)]
    config = SSDConfig(num_draft_tokens=seed % 5 + 1, bin_size=2, sample_space_size=[1, 3, 10][seed % 3])
    target = make_model(seed, len(tokenizer) + seed % 2 * 19)
    draft = make_relative(target, seed, 0.6)
    prompt = [5, 6, 7, seed]
    with SSDEngine(target, draft, tokenizer, config=config) as engine:
        result = engine.generate(prompt, grammar(pattern))
    oracle = Oracle(tokenizer, pattern, len(tokenizer))
    controller = SchemeController(config)
    text, trace = "", result.trace
    for place, token_id in enumerate(result.token_ids):
        allowed = oracle.allowed(text)
        assert token_id in allowed
        assert trace.schemes[place] is controller.scheme
        if trace.forced[place]:
            # Whatever is allowed here spells the same text, or a beginning of it.
            following = oracle_text(oracle, result.token_ids[place:])
            assert all(following.startswith(oracle.texts[i]) for i in allowed - {tokenizer.eos_token_id})
            assert not trace.matched[place]
        else:
            out = result.token_ids[:place]
            p_target = masked(reference.next_probabilities(target, prompt + out, len(tokenizer)), allowed)
            p_draft = masked(reference.next_probabilities(draft, prompt + out, len(tokenizer)), allowed)
            size = min(config.sample_space_size, len(allowed))
            assert token_id == reference.choose(p_target, p_draft, controller.scheme, controller.alpha, size)
            assert trace.matched[place] == (token_id == reference.ranking(p_draft)[0])
            controller.record(matched=trace.matched[place])
        text += oracle.texts.get(token_id, "")
    assert regex.fullmatch(pattern, result.text) or result.finish_reason == "length"
    assert len(trace.bins) == (len(trace.forced) - trace.num_forced) // 2


def oracle_text(oracle: Oracle, token_ids: list[int]) -> str:
    return "".join(oracle.texts.get(i, "") for i in token_ids)


def test_the_cases_force_tokens_and_reach_both_schemes(tokenizer: PreTrainedTokenizerFast) -> None:
    """The comparison above is worth what its cases cover."""
    forced, schemes = 0, set()
    for seed in range(24):
        target = make_model(seed, len(tokenizer))
        config = SSDConfig(bin_size=2)
        with SSDEngine(target, make_relative(target, seed, 0.6), tokenizer, config=config) as engine:
            trace = engine.generate([5, 6, 7, seed], grammar(PATTERNS[seed % len(PATTERNS)])).trace
        forced += trace.num_forced
        schemes |= set(trace.schemes)
    assert forced > 100
    assert schemes == {Scheme.INTERSECTION, Scheme.UNION}


@pytest.mark.parametrize("temperature", [0.0, 1.2])
@pytest.mark.parametrize("decoding", ["ssd", "speculative", "target"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_decoding_keeps_to_the_grammar_streamed_or_not(
    tiny_engine: SSDEngine, decoding: str, temperature: float, pattern: str
) -> None:
    for seed in range(4):
        params = GenerationParams(
            max_new_tokens=200, decoding=decoding, temperature=temperature, seed=seed, grammar=Grammar(regex=pattern)
        )
        result = tiny_engine.generate([5, seed], params)
        assert result.finish_reason in ("stop", "length")
        assert regex.fullmatch(pattern, result.text, partial=result.finish_reason == "length")
        assert "".join(piece.text for piece in tiny_engine.stream([5, seed], params)) == result.text


def test_the_number_of_drafts_changes_no_token(tiny_pair: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    params = GenerationParams(
        max_new_tokens=80, temperature=0.9, seed=4, grammar=Grammar(json_schema=PERSON), decoding="speculative"
    )
    answers = set()
    for num_draft_tokens in (1, 2, 3, 5, 8, "auto"):
        config = SSDConfig(num_draft_tokens=num_draft_tokens)
        with SSDEngine(*tiny_pair, tokenizer=tokenizer, config=config) as engine:
            answers.add(tuple(engine.generate([5, 6, 7], params).token_ids))
    assert len(answers) == 1


@pytest.mark.parametrize("seed", range(8))
def test_json_follows_its_schema_and_never_holds_a_control_token(tiny_engine: SSDEngine, seed: int) -> None:
    params = GenerationParams(max_new_tokens=300, temperature=1.0, seed=seed, grammar=Grammar(json_schema=PERSON))
    result = tiny_engine.generate([5, 6, 7], params)
    assert result.finish_reason == "stop"
    person = json.loads(result.text)
    assert list(person) == ["name", "age", "city"]
    assert len(person["name"]) <= 8
    assert 0 <= person["age"] <= 150
    assert person["city"] in PERSON["properties"]["city"]["enum"]
    assert result.token_ids.count(tiny_engine.tokenizer.eos_token_id) == 1


def test_text_that_spells_a_control_token_is_written_in_plain_characters(tiny_engine: SSDEngine) -> None:
    schema = {"type": "object", "properties": {"end": {"const": "<|im_end|><|im_start|>"}}, "required": ["end"]}
    result = tiny_engine.generate([5], GenerationParams(max_new_tokens=100, grammar=Grammar(json_schema=schema)))
    assert json.loads(result.text) == {"end": "<|im_end|><|im_start|>"}
    assert result.token_ids.index(tiny_engine.tokenizer.eos_token_id) == len(result.token_ids) - 1


def test_an_answer_with_no_choice_takes_no_forward_pass(tiny_engine: SSDEngine) -> None:
    result = tiny_engine.generate([5], GenerationParams(grammar=Grammar(regex="quick")))
    assert result.text == "quick"
    assert result.finish_reason == "stop"
    assert all(result.trace.forced)
    assert result.timings.target_forward == result.timings.draft_forward == 0
    assert result.trace.match_ratios == []
    assert result.usage.completion_tokens == len(result.token_ids)


def test_max_tokens_within_the_structure_is_told(tiny_engine: SSDEngine) -> None:
    for limit in range(1, 12):
        params = GenerationParams(max_new_tokens=limit, grammar=Grammar(json_schema=PERSON))
        result = tiny_engine.generate([5, 6, 7], params)
        assert result.finish_reason == "length"
        assert len(result.token_ids) == limit


def test_sampled_tokens_follow_the_composite_among_allowed_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    target = make_model(3, len(tokenizer))
    draft = make_relative(target, 4, 0.3)
    allowed = Oracle(tokenizer, "[a-h]{1,40}", len(tokenizer)).allowed("")
    p_target, p_draft = (
        masked(reference.next_probabilities(model, [9, 8], len(tokenizer)), allowed) for model in (target, draft)
    )
    space, stands = reference.intersection(p_target, p_draft, min(10, len(allowed)))
    weights = reference.composite(p_target, p_draft, space & allowed, 0.0 if stands else 0.3)
    expected = {i: max(0.0, weight) for i, weight in weights.items() if weight > 0.01}
    with SSDEngine(target, draft, tokenizer) as engine:
        counts = Counter(
            engine.generate(
                [9, 8],
                GenerationParams(max_new_tokens=1, temperature=1.0, seed=seed, grammar=Grammar(regex="[a-h]{1,40}")),
            ).token_ids[0]
            for seed in range(1500)
        )
    assert set(counts) <= allowed
    total = sum(counts[i] for i in expected)
    shares = [weight / sum(expected.values()) * total for weight in expected.values()]
    assert chisquare([counts[i] for i in expected], shares).pvalue > 1e-4


def test_guided_and_free_requests_decode_together_as_alone(tiny_engine: SSDEngine) -> None:
    rng = random.Random(1)
    grammars = [None, Grammar(json_schema=PERSON), *(Grammar(regex=pattern) for pattern in PATTERNS)]
    prompts = [[rng.randrange(5, 300) for _ in range(rng.randrange(1, 50))] for _ in range(12)]
    params = [
        GenerationParams(max_new_tokens=50, grammar=grammars[i % 6], temperature=i % 2, seed=i) for i in range(12)
    ]
    alone = [tiny_engine.generate(*each) for each in zip(prompts, params, strict=True)]
    streams = [tiny_engine.stream(*each) for each in zip(prompts, params, strict=True)]
    firsts = [next(stream) for stream in streams]
    for first, stream, expected in zip(firsts, streams, alone, strict=True):
        *_, last = first, *stream
        assert last.result is not None
        assert last.result.token_ids == expected.token_ids
        assert last.result.trace.matched == expected.trace.matched


def test_a_pydantic_model_and_a_lark_grammar_serve_too(tiny_engine: SSDEngine) -> None:
    for seed in range(6):
        params = GenerationParams(max_new_tokens=300, temperature=1.0, seed=seed, grammar=Grammar(json_schema=Person))
        result = tiny_engine.generate([7], params)
        if result.finish_reason == "stop":
            Person.model_validate_json(result.text)
    lark = 'start: greeting (" and " greeting)*\ngreeting: "hello" | "good day"'
    result = tiny_engine.generate([7], GenerationParams(max_new_tokens=200, grammar=Grammar(lark=lark)))
    assert regex.fullmatch("(hello|good day)( and (hello|good day))*", result.text, partial=True)


@pytest.mark.parametrize(
    ("grammar", "told"),
    [
        ({"json_schema": {"type": "person"}}, "person"),
        ({"json_schema": {"type": "string", "pattern": "(?=a)b"}}, "look-ahead"),
        ({"json_schema": {"type": "object", "properties": {"x": False}, "required": ["x"]}}, "unsatisfiable"),
        ({"regex": "a("}, "unclosed group"),
        ({"lark": "start: nothing"}, "nothing"),
    ],
)
def test_a_grammar_that_cannot_be_compiled_says_why(tiny_engine: SSDEngine, grammar: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequestError, match=told):
        tiny_engine.generate([5], GenerationParams(grammar=Grammar(**grammar)))
    assert tiny_engine.generate([5], GenerationParams(max_new_tokens=3)).token_ids


def test_keywords_that_cannot_be_enforced_are_an_error_or_passed_over(tiny_engine: SSDEngine) -> None:
    schema = {"type": "integer", "minimum": 0, "not": {"const": 3}}
    with pytest.raises(InvalidRequestError, match="not"):
        tiny_engine.generate([5], GenerationParams(grammar=Grammar(json_schema=schema)))
    params = GenerationParams(max_new_tokens=60, grammar=Grammar(json_schema=schema, lenient=True))
    assert tiny_engine.generate([5], params).text.isdigit()


@pytest.mark.parametrize("fields", [{}, {"regex": "a", "lark": 'start: "a"'}])
def test_a_grammar_is_one_of_three(fields: dict[str, str]) -> None:
    with pytest.raises(InvalidRequestError, match="give one of json_schema, regex and lark"):
        Grammar(**fields)


def test_a_tokenizer_without_an_end_cannot_follow_a_grammar(tiny_pair: Any) -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with (
        SSDEngine(*tiny_pair, tokenizer=tokenizer) as engine,
        pytest.raises(InvalidRequestError, match="end-of-sequence"),
    ):
        engine.generate([5], grammar("a|b"))


def test_vocabularies_of_any_size_are_masked_to_their_end(tokenizer: PreTrainedTokenizerFast) -> None:
    """Models padded past the tokenizer never write an id that it does not know."""
    target = make_model(9, len(tokenizer) + 37)
    with torch.no_grad():
        target.lm_head.weight[len(tokenizer) :] *= 50
    with SSDEngine(target, make_relative(target, 1, 0.2), tokenizer) as engine:
        result = engine.generate([5], grammar("[a-z ]{10,40}"))
    assert max(result.token_ids) < len(tokenizer)


@pytest.mark.parametrize(
    "schema",
    [
        {"multipleOf": 1_000_000_007},
        {"multipleOf": -4148246},
        {"multipleOf": 10**5000},
        {"allOf": [{"multipleOf": 99991}, {"multipleOf": 9998.9}]},
    ],
)
def test_multiples_with_too_many_remainders_are_refused_or_passed_over(
    tiny_engine: SSDEngine, schema: dict[str, Any]
) -> None:
    """They would be compiled for minutes, or for ever."""
    with pytest.raises(InvalidRequestError, match="multipleOf"):
        ask(tiny_engine, Grammar(json_schema=schema))
    assert ask(tiny_engine, Grammar(json_schema={"type": "integer", **schema}, lenient=True)).token_ids
    assert ask(tiny_engine, Grammar(json_schema={"type": "integer", "multipleOf": 0.25})).token_ids


def ask(engine: SSDEngine, grammar: Grammar) -> GenerationResult:
    return engine.generate([5, 6], GenerationParams(max_new_tokens=4, grammar=grammar))
