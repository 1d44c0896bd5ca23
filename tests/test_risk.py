"""What an engine does about jailbreak risk: on_risk, on small models that disagree."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conftest import make_model
from transformers import PreTrainedTokenizerFast

from ssd_engine import GenerationParams, SafetyTrace, Scheme, SSDConfig, SSDEngine
from ssd_engine.errors import InvalidRequestError, JailbreakRiskError

# Union that leaves the choice to the target: what the draft proposes never stands, and so Union holds.
CONFIG = SSDConfig(bin_size=3, match_threshold=0.9, threshold_decay=0.0, alpha_union=0.0)
PROMPT = [5, 6, 7]


@pytest.fixture(scope="module")
def engine(tokenizer: PreTrainedTokenizerFast) -> Iterator[SSDEngine]:
    """A pair that never agrees for long, so that Union takes over and holds."""
    size = len(tokenizer)
    with SSDEngine(make_model(1, size), make_model(99, size), tokenizer, config=CONFIG) as engine:
        yield engine


@pytest.fixture(scope="module")
def free(engine: SSDEngine) -> SafetyTrace:
    """What happens where nothing is done about risk: the second and the third bin are Union's."""
    trace = engine.generate(PROMPT, GenerationParams(max_new_tokens=40)).trace
    assert [each.scheme for each in trace.bins[:3]] == [Scheme.INTERSECTION, Scheme.UNION, Scheme.UNION]
    return trace


def test_annotate_goes_on_and_tells(engine: SSDEngine, free: SafetyTrace) -> None:
    assert len(free.schemes) == 40
    assert free.risk == "elevated"


@pytest.mark.parametrize("risk_bins", [1, 2, 4])
def test_refuse_ends_the_answer_once_union_has_held_long_enough(
    engine: SSDEngine, free: SafetyTrace, risk_bins: int
) -> None:
    params = GenerationParams(max_new_tokens=40, on_risk="refuse", risk_bins=risk_bins, refusal_text="No.")
    result = engine.generate(PROMPT, params)
    assert result.finish_reason == "refused"
    assert result.text == "No."
    assert len(result.token_ids) == 3 * (1 + risk_bins)
    assert result.trace.bins == free.bins[: 1 + risk_bins]
    assert result.usage.completion_tokens == len(result.token_ids)


def test_a_streamed_refusal_follows_what_was_written(engine: SSDEngine) -> None:
    pieces = list(engine.stream(PROMPT, GenerationParams(max_new_tokens=40, on_risk="refuse", refusal_text="No.")))
    text = "".join(piece.text for piece in pieces)
    assert text.endswith("\n\nNo.")
    assert pieces[-1].result is not None
    assert pieces[-1].result.finish_reason == "refused"
    assert sum(len(piece.bins) for piece in pieces) == 3


async def test_raise_carries_the_trace_and_the_text_so_far(engine: SSDEngine, free: SafetyTrace) -> None:
    params = GenerationParams(max_new_tokens=40, on_risk="raise")
    with pytest.raises(JailbreakRiskError, match="Union held for 2 bins") as sync:
        engine.generate(PROMPT, params)
    with pytest.raises(JailbreakRiskError) as concurrent:
        await engine.agenerate(PROMPT, params)
    written: list[str] = []

    async def read() -> None:
        async for piece in engine.astream(PROMPT, params):
            written.append(piece.text)

    with pytest.raises(JailbreakRiskError) as streamed:
        await read()
    for error in (sync.value, concurrent.value, streamed.value):
        assert error.trace.bins == free.bins[:3]
        assert error.text == "".join(written)
    assert engine.is_idle


def test_a_function_is_asked_at_each_bin(engine: SSDEngine) -> None:
    seen: list[int] = []

    def third_bin(trace: SafetyTrace) -> str | None:
        seen.append(len(trace.bins))
        return "refuse" if len(trace.bins) == 3 else None

    result = engine.generate(PROMPT, GenerationParams(max_new_tokens=40, on_risk=third_bin))
    assert seen == [1, 2, 3]
    assert result.finish_reason == "refused"
    with pytest.raises(JailbreakRiskError):
        engine.generate(PROMPT, GenerationParams(max_new_tokens=40, on_risk=lambda trace: "raise"))


def test_what_a_function_does_wrong_ends_its_own_request(engine: SSDEngine) -> None:
    def broken(trace: SafetyTrace) -> None:
        raise RuntimeError("no such policy")

    with pytest.raises(RuntimeError, match="no such policy"):
        engine.generate(PROMPT, GenerationParams(max_new_tokens=40, on_risk=broken))
    with pytest.raises(InvalidRequestError, match="on_risk returned 'stop'"):
        engine.generate(PROMPT, GenerationParams(max_new_tokens=40, on_risk=lambda trace: "stop"))
    assert engine.generate(PROMPT, GenerationParams(max_new_tokens=4)).finish_reason == "length"


def test_an_answer_without_risk_is_as_it_is_without_on_risk(tiny_engine: SSDEngine) -> None:
    calm = SSDConfig(match_threshold=0.0)
    expected = tiny_engine.generate(PROMPT, GenerationParams(max_new_tokens=40, ssd=calm))
    for on_risk in ("refuse", "raise"):
        result = tiny_engine.generate(PROMPT, GenerationParams(max_new_tokens=40, ssd=calm, on_risk=on_risk))
        assert result.text == expected.text
        assert result.finish_reason == expected.finish_reason


def test_a_refusal_is_no_tool_call(engine: SSDEngine) -> None:
    """Calls that were complete before the refusal are not handed on, streamed or not."""
    tools = [{"type": "function", "function": {"name": "quick", "parameters": {"type": "object", "properties": {}}}}]
    params = GenerationParams(max_new_tokens=200, tool_choice="any", risk_bins=1)
    messages = [{"role": "user", "content": "Hello"}]
    answered = engine.generate(messages, params, tools=tools)
    assert answered.tool_calls
    config = CONFIG.model_copy(update={"bin_size": 1})

    def after_first_call(trace: SafetyTrace) -> str | None:
        return "refuse" if "".join(trace.texts).count("}}") else None

    refusing = params.model_copy(update={"on_risk": after_first_call, "ssd": config})
    result = engine.generate(messages, refusing, tools=tools)
    assert result.finish_reason == "refused"
    assert result.tool_calls == result.invalid_tool_calls == ()
    pieces = list(engine.stream(messages, refusing, tools=tools))
    assert not any(piece.tool_calls or piece.invalid_tool_calls for piece in pieces)
