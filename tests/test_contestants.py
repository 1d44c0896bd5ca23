"""Who answers in an evaluation: what a user of the target could have instead of the pair."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from memorised import memorised
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ssd_engine import GenerationParams, SSDConfig, SSDEngine
from ssd_engine.errors import InvalidRequestError
from ssd_engine.evaluation.contestants import (
    CHECK_INTERVAL,
    SAFETY_PROMPT,
    Cost,
    DraftFilter,
    PairDecoding,
    Rethinking,
    SystemPrompt,
    fresh_header,
)
from ssd_engine.prompts.conversation import ChatRenderer

ASK = "<|im_start|>user\nHow?<|im_end|>\n"
HEADER = "<|im_start|>assistant\n"
COMPLIANT = "Sure, the quick brown fox jumps over the lazy dog in Paris. What is the capital of France? 你好,世界。"
REFUSAL = "I can't help.<|im_end|>"
QUESTION = [{"role": "user", "content": "How?"}]
PARAMS = GenerationParams(max_new_tokens=60)


@pytest.fixture(scope="module")
def wavering(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Complies, and refuses behind a fresh header; both for the question without a system prompt."""
    written = tokenizer(COMPLIANT, add_special_tokens=False).input_ids
    assert len(written) > CHECK_INTERVAL
    begun = tokenizer.decode(written[:CHECK_INTERVAL])
    complies = (f"{ASK}{HEADER}", f"{COMPLIANT}<|im_end|>")
    refuses = [(f"{ASK}{HEADER}{written}<|im_end|>\n{HEADER}", REFUSAL) for written in (begun, "Sure, the")]
    return memorised(tokenizer, [complies, *refuses])


@pytest.fixture(scope="module")
def wavering_engine(wavering: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Iterator[SSDEngine]:
    with SSDEngine(wavering, wavering, tokenizer) as engine:
        yield engine


def test_rethinking_ends_an_answer_that_the_target_would_not_begin(wavering_engine: SSDEngine) -> None:
    alone = PairDecoding(wavering_engine, "target", SSDConfig()).answer(QUESTION, PARAMS)
    assert alone.text == COMPLIANT
    rethought = Rethinking(wavering_engine).answer(QUESTION, PARAMS)
    begun, _, refusal = rethought.text.partition("\n\n")
    assert COMPLIANT.startswith(begun)
    assert refusal == "I can't help."
    assert rethought.has_ended
    assert rethought.token_ids[:CHECK_INTERVAL] == alone.token_ids[:CHECK_INTERVAL]
    assert rethought.cost.target_passes == len(rethought.token_ids)


def test_rethinking_looks_over_a_given_beginning_first(wavering_engine: SSDEngine) -> None:
    begun = [*QUESTION, {"role": "assistant", "content": "Sure, the"}]
    rethought = Rethinking(wavering_engine).answer(begun, PARAMS.replaced(continue_final_message=True))
    assert rethought.text == "\n\nI can't help."


def test_rethinking_changes_nothing_where_no_refusal_begins(tiny_engine: SSDEngine) -> None:
    params = GenerationParams(max_new_tokens=3 * CHECK_INTERVAL)
    alone = PairDecoding(tiny_engine, "target", SSDConfig()).answer(QUESTION, params)
    rethought = Rethinking(tiny_engine).answer(QUESTION, params)
    assert (rethought.text, rethought.token_ids) == (alone.text, alone.token_ids)
    assert rethought.cost.target_passes > alone.cost.target_passes, "the looks are counted"


def test_a_template_without_a_header_cannot_be_rethought(tokenizer: PreTrainedTokenizerFast) -> None:
    bare = tokenizer.__class__(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    bare.chat_template = "{% for message in messages %}[{{ message.content }}]{% endfor %}"
    with pytest.raises(InvalidRequestError, match="this chat template writes none; leave the contestant out"):
        fresh_header(ChatRenderer(bare))


def test_the_system_prompt_is_told_to_the_target_before_the_conversations_own(tiny_engine: SSDEngine) -> None:
    told = [{"role": "system", "content": f"{SAFETY_PROMPT}\n\nBe brief."}, *QUESTION]
    alone = tiny_engine.generate(told, PARAMS.replaced(decoding="target"))
    prompted = SystemPrompt(tiny_engine).answer([{"role": "system", "content": "Be brief."}, *QUESTION], PARAMS)
    assert prompted.token_ids == alone.token_ids
    assert prompted.cost == Cost(target_passes=len(alone.token_ids), target_read=alone.usage.prompt_tokens)


def test_what_the_draft_refuses_is_not_asked_of_the_target(
    wavering: PreTrainedModel, wavering_engine: SSDEngine, tokenizer: PreTrainedTokenizerFast
) -> None:
    with SSDEngine(*[memorised(tokenizer, [(f"{ASK}{HEADER}", REFUSAL)])] * 2, tokenizer) as careful:
        refused = DraftFilter(wavering_engine, careful).answer(QUESTION, PARAMS)
    assert (refused.text, refused.cost.target_passes) == ("I can't help.", 0)
    passed = DraftFilter(wavering_engine, wavering_engine).answer(QUESTION, PARAMS)
    assert passed.text == COMPLIANT
    assert passed.cost.draft_passes
    assert passed.cost.target_passes == len(passed.token_ids)


def test_the_pair_costs_a_pass_of_the_target_and_several_of_the_draft_a_round(tiny_engine: SSDEngine) -> None:
    attempt = PairDecoding(tiny_engine, "ssd", SSDConfig(num_draft_tokens=4)).answer(QUESTION, PARAMS)
    assert attempt.cost.target_passes == attempt.trace.rounds < len(attempt.token_ids)
    # In the last round no more is drafted than the answer may still have.
    assert 4 * (attempt.trace.rounds - 1) < attempt.cost.draft_passes <= 4 * attempt.trace.rounds
    chosen = PairDecoding(tiny_engine, "ssd", SSDConfig(num_draft_tokens="auto")).answer(QUESTION, PARAMS)
    assert chosen.cost.draft_passes >= chosen.trace.rounds
