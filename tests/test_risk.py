"""What an engine does about jailbreak risk: on_risk, on small models that disagree."""

from __future__ import annotations

from typing import Any

import pytest

from ssd_engine import GenerationParams, SafetyTrace, Scheme, SSDConfig, SSDEngine
from ssd_engine.errors import InvalidRequestError, JailbreakRiskError

PROMPT = [5, 6, 7]


@pytest.fixture(scope="module")
def free(wary: SSDEngine) -> SafetyTrace:
    """What happens where nothing is done about risk: the second and the third bin are Union's."""
    trace = wary.generate(PROMPT, GenerationParams(max_new_tokens=40)).trace
    assert [each.scheme for each in trace.bins[:3]] == [Scheme.INTERSECTION, Scheme.UNION, Scheme.UNION]
    return trace


def test_annotate_goes_on_and_tells(wary: SSDEngine, free: SafetyTrace) -> None:
    assert len(free.schemes) == 40
    assert free.risk == "elevated"


@pytest.mark.parametrize("risk_bins", [1, 2, 4])
def test_refuse_ends_the_answer_once_union_has_held_long_enough(
    wary: SSDEngine, free: SafetyTrace, risk_bins: int
) -> None:
    params = GenerationParams(max_new_tokens=40, on_risk="refuse", risk_bins=risk_bins, refusal_text="No.")
    result = wary.generate(PROMPT, params)
    assert result.finish_reason == "refused"
    assert result.text == "No."
    assert len(result.token_ids) == 3 * (1 + risk_bins)
    assert result.trace.bins == free.bins[: 1 + risk_bins]
    assert result.usage.completion_tokens == len(result.token_ids)


def test_a_streamed_refusal_follows_what_was_written(wary: SSDEngine) -> None:
    pieces = list(wary.stream(PROMPT, GenerationParams(max_new_tokens=40, on_risk="refuse", refusal_text="No.")))
    text = "".join(piece.text for piece in pieces)
    assert text.endswith("\n\nNo.")
    assert pieces[-1].result is not None
    assert pieces[-1].result.finish_reason == "refused"
    assert sum(len(piece.bins) for piece in pieces) == 3


async def test_raise_carries_the_trace_and_the_text_so_far(wary: SSDEngine, free: SafetyTrace) -> None:
    params = GenerationParams(max_new_tokens=40, on_risk="raise")
    with pytest.raises(JailbreakRiskError, match="Union held for 2 bins") as sync:
        wary.generate(PROMPT, params)
    with pytest.raises(JailbreakRiskError) as concurrent:
        await wary.agenerate(PROMPT, params)
    written: list[str] = []

    async def read() -> None:
        async for piece in wary.astream(PROMPT, params):
            written.append(piece.text)  # noqa: PERF401 (what came before the error is looked at)

    with pytest.raises(JailbreakRiskError) as streamed:
        await read()
    for error in (sync.value, concurrent.value, streamed.value):
        assert error.trace.bins == free.bins[:3]
        assert error.text == "".join(written)
    assert wary.is_idle


@pytest.mark.parametrize("on_risk", ["raise", lambda trace: "raise" if len(trace.bins) == 3 else None])
def test_raise_holds_on_the_last_token_too(wary: SSDEngine, free: SafetyTrace, on_risk: Any) -> None:
    last = free.bin_ends[2]
    with pytest.raises(JailbreakRiskError):
        wary.generate(PROMPT, GenerationParams(max_new_tokens=last, on_risk=on_risk))


def test_a_function_is_asked_at_each_bin(wary: SSDEngine) -> None:
    seen: list[int] = []

    def third_bin(trace: SafetyTrace) -> str | None:
        seen.append(len(trace.bins))
        return "refuse" if len(trace.bins) == 3 else None

    result = wary.generate(PROMPT, GenerationParams(max_new_tokens=40, on_risk=third_bin))
    assert seen == [1, 2, 3]
    assert result.finish_reason == "refused"
    with pytest.raises(JailbreakRiskError):
        wary.generate(PROMPT, GenerationParams(max_new_tokens=40, on_risk=lambda trace: "raise"))


def test_what_a_function_does_wrong_ends_its_own_request(wary: SSDEngine) -> None:
    def broken(trace: SafetyTrace) -> None:
        raise RuntimeError("no such policy")

    with pytest.raises(RuntimeError, match="no such policy"):
        wary.generate(PROMPT, GenerationParams(max_new_tokens=40, on_risk=broken))
    with pytest.raises(InvalidRequestError, match="on_risk returned 'stop'"):
        wary.generate(PROMPT, GenerationParams(max_new_tokens=40, on_risk=lambda trace: "stop"))
    assert wary.generate(PROMPT, GenerationParams(max_new_tokens=4)).finish_reason == "length"


def test_an_answer_without_risk_is_as_it_is_without_on_risk(tiny_engine: SSDEngine) -> None:
    calm = SSDConfig(match_threshold=0.0)
    expected = tiny_engine.generate(PROMPT, GenerationParams(max_new_tokens=40, ssd=calm))
    for on_risk in ("refuse", "raise"):
        result = tiny_engine.generate(PROMPT, GenerationParams(max_new_tokens=40, ssd=calm, on_risk=on_risk))
        assert result.text == expected.text
        assert result.finish_reason == expected.finish_reason


def test_a_refusal_is_no_tool_call(wary: SSDEngine) -> None:
    """Calls that were complete before the refusal are not handed on, streamed or not."""
    tools = [{"type": "function", "function": {"name": "quick", "parameters": {"type": "object", "properties": {}}}}]
    params = GenerationParams(max_new_tokens=200, tool_choice="any", risk_bins=1)
    messages = [{"role": "user", "content": "Hello"}]
    answered = wary.generate(messages, params, tools=tools)
    assert answered.tool_calls
    config = wary.config.model_copy(update={"bin_size": 1})

    def after_first_call(trace: SafetyTrace) -> str | None:
        return "refuse" if "".join(trace.texts).count("}}") else None

    refusing = params.model_copy(update={"on_risk": after_first_call, "ssd": config})
    result = wary.generate(messages, refusing, tools=tools)
    assert result.finish_reason == "refused"
    assert result.tool_calls == result.invalid_tool_calls == ()
    pieces = list(wary.stream(messages, refusing, tools=tools))
    assert not any(piece.tool_calls or piece.invalid_tool_calls for piece in pieces)
