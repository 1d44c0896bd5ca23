"""What is made of vLLM's outputs where they are not what they should be; vLLM itself is not needed for that."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ssd_engine import GenerationParams, SignalConfig, SSDConfig
from ssd_engine.backends.vllm.decoder import VllmSequence
from ssd_engine.errors import SSDError
from ssd_engine.trace.codes import TraceReader, digit_of, encode, encode_beginnings, encode_signals

LOGPROBS = {"logprobs": True, "top_logprobs": 1}


def output(token_ids: list[int], *, reason: str | None = None, logprobs: Any = "as ever") -> Any:
    """A `RequestOutput` with new tokens, each a match that began a round."""
    if logprobs == "as ever":
        logprobs = [{i: SimpleNamespace(rank=10, logprob=-0.5)} for i in token_ids]
    completion = SimpleNamespace(token_ids=token_ids, logprobs=logprobs, finish_reason=reason)
    return SimpleNamespace(outputs=[completion], num_cached_tokens=None, finished=reason is not None)


def sequence(**params: Any) -> VllmSequence:
    return VllmSequence("a", GenerationParams(**params), SSDConfig())


@pytest.mark.parametrize("reason", ["abort", "error", "repetition"])
@pytest.mark.parametrize("token_ids", [[], [5, 6]])
@pytest.mark.parametrize("logprobs", ["as ever", None])
def test_a_request_that_vllm_gives_up_is_an_error(reason: str, token_ids: list[int], logprobs: Any) -> None:
    with pytest.raises(SSDError, match=reason if logprobs or not token_ids else "log-probabilities"):
        sequence().choices(output(token_ids, reason=reason, logprobs=logprobs))


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_an_end_of_vllms_own_is_told_with_the_last_token(reason: str) -> None:
    choices = sequence().choices(output([5, 6], reason=reason))
    assert [choice.ends for choice in choices] == [None, reason]
    with pytest.raises(SSDError, match=reason):  # else the answer would wait for a token that never comes
        sequence().choices(output([], reason=reason))


@pytest.mark.parametrize("decoding", ["ssd", "speculative"])
def test_tokens_without_log_probabilities_are_an_error_where_these_are_needed(decoding: Any) -> None:
    with pytest.raises(SSDError, match="log-probabilities"):
        sequence(decoding=decoding, **LOGPROBS).choices(output([5, 6], logprobs=None))
    assert sequence(decoding=decoding).choices(output([], logprobs=None)) == []
    assert len(sequence(decoding="speculative").choices(output([5, 6], logprobs=None))) == 2


def test_the_lossless_rule_has_the_log_probabilities_that_were_asked_for() -> None:
    (first, second) = sequence(decoding="speculative", **LOGPROBS).choices(output([5, 6]))
    assert (first.logprob, first.top_logprobs) == (-0.5, ((5, -0.5),))
    assert (first.matched, second.matched) == (True, False)


def test_numbers_that_are_none_travel_as_a_code_of_their_own() -> None:
    flags = torch.tensor([[True, False, True], [False, False, False]])
    broken = torch.tensor([[False, False, True], [True, False, False]])
    ranks = encode(flags, flags, flags, broken).tolist()
    for row, is_broken in zip(ranks, broken.tolist(), strict=True):
        for rank, is_here in zip(row, is_broken, strict=True):
            reader = TraceReader(SSDConfig())
            if is_here:
                with pytest.raises(SSDError, match="NaN"):
                    reader.read_code(5, rank - 1)
                assert not reader.trace.matched
            else:
                assert reader.read_code(5, rank - 1).token_id == 5


def test_what_signals_said_travels_with_a_token() -> None:
    """Scores keep their side of the threshold, however near they are."""
    config = SignalConfig(refusal_mass=0.3, kl=0.70001, hold=2)
    unused = float("nan")
    scores = torch.tensor([[0.29999, 0.5, 0.70002], [0.3000001, unused, 0.7], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    raised = torch.tensor([[True, True, False, True]])
    thresholds = torch.tensor([[0.3, unused, 0.70001]], dtype=torch.float64)
    flags = torch.zeros(1, 4, dtype=torch.bool)
    ranks = encode(flags, flags, flags, flags) + encode_signals(raised, scores[None], thresholds)
    reader = TraceReader(SSDConfig(signals=config))
    for rank, score in zip(ranks[0].tolist(), scores.tolist(), strict=True):
        look = reader.read(5, {5: SimpleNamespace(rank=rank, logprob=0.0)}).look
        assert look is not None
        assert look.scores == pytest.approx({"refusal_mass": score[0], "kl": score[2]}, abs=2e-3)
    trace = reader.trace
    assert [(alarm.place, alarm.signal) for alarm in trace.alarms] == [
        (0, "kl"),
        (1, "refusal_mass"),
        (3, "refusal_mass"),
    ]
    assert trace.risk_scores == pytest.approx(scores[:, [0, 2]].amax(-1).tolist(), abs=2e-3)
    assert digit_of(ranks[0, 0].item() - 1) == "8"


def test_what_signals_said_over_a_beginning_travels_with_the_first_token() -> None:
    config = SignalConfig(refusal_mass=0.3, probe=0.5, kl=0.5)
    thresholds = torch.tensor([[0.3, 0.5, 0.5]], dtype=torch.float64)
    flags = torch.zeros(1, 1, dtype=torch.bool)
    said = encode(flags, flags, flags, flags) + encode_signals(flags, torch.full((1, 1, 3), 1.0), thresholds)
    for highest, expected, alarms in (
        ([0.2, 0.75, -1.0], [0.75], [(-1, "probe")]),
        ([0.2999, 0.1, -1.0], [0.2999], []),
        ([-1.0, -1.0, -1.0], [], []),
    ):
        rank = int(said[0, 0] + encode_beginnings(torch.tensor([highest]), thresholds)[0])
        assert rank < 2**63
        reader = TraceReader(SSDConfig(signals=config))
        reader.read(5, {5: SimpleNamespace(rank=rank, logprob=0.0)})
        assert reader.trace.beginning_scores == pytest.approx(expected, abs=2e-3)
        assert [(alarm.place, alarm.signal) for alarm in reader.trace.alarms] == alarms
        assert reader.trace.risk_scores == [1.0]
