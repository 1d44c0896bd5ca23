"""The signals of many sequences in one tensor do what each sequence's own control does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssd_engine.backends.vllm.given import given_places, listen
from ssd_engine.backends.vllm.requests import RequestSettings, RequestTable
from ssd_engine.config import SIGNALS, GenerationParams, SignalConfig, SSDConfig
from ssd_engine.rule.draft_signals import DraftSignals
from ssd_engine.rule.predictions import Predictions
from ssd_engine.rule.scheme import Scheme
from ssd_engine.rule.scheme_batch import SchemeBatch
from ssd_engine.rule.signal_batch import SignalBatch
from ssd_engine.rule.signals import Look, SignalControl
from ssd_engine.rule.verifier import Verifier
from ssd_engine.rule.verify import Turn, verify
from ssd_engine.rule.verify_batch import Positions, verify_batch

CPU = torch.device("cpu")
REFUSAL_IDS = torch.tensor([3, 7])
VOCAB = 17

thresholds = st.sampled_from([None, 0.0, 0.3, 0.5, 0.8, 1.0])
heard = st.builds(
    lambda mass, probe, kl, hold, smoothing, latch: SignalConfig(
        refusal_mass=mass, probe=probe, kl=kl, hold=hold, smoothing=smoothing, latch=latch
    ),
    thresholds,
    thresholds,
    st.sampled_from([0.2, 0.6]),
    st.integers(1, 6),
    st.integers(1, 4),
    st.booleans(),
)
configs = st.builds(
    SSDConfig,
    signals=st.none() | heard,
    sample_space_size=st.integers(1, 6),
    bin_size=st.integers(1, 5),
    match_threshold=st.sampled_from([0.0, 0.3, 0.6]),
)


@given(st.lists(heard, min_size=1, max_size=4), st.integers(0, 2**32))
def test_every_row_follows_its_own_signal_control(settings: list[SignalConfig], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = SignalBatch(SignalBatch.rows_of(settings, CPU), REFUSAL_IDS)
    controls = [SignalControl(each, set(REFUSAL_IDS.tolist())) for each in settings]
    num_given = 8
    for place in range(20):
        # Tenths, so that some are a threshold; -1 where a signal gives nothing.
        tenths = torch.randint(-1, 10, (len(settings), len(SIGNALS)), generator=generator)
        scores = torch.where(tenths < 0, -1.0, tenths / 10)
        counts = torch.rand(len(settings), generator=generator) < 0.8
        token_ids = torch.randint(0, 12, (len(settings),), generator=generator)
        raised, smoothed = batch.look(scores, counts)
        for row, control in enumerate(controls):
            given = zip(SIGNALS, scores[row].tolist(), strict=True)
            used = {name: score for name, score in given if name in control.config.thresholds and score >= 0}
            look = control.look(used) if counts[row] else Look({})
            assert raised[row].item() == bool(look.raised)
            assert {name: smoothed[row, SIGNALS.index(name)].item() for name in look.scores} == look.scores
        assert batch.asks_for_union.tolist() == [control.asks_for_union for control in controls]
        assert batch.is_latched.tolist() == [each.config.latch and each.asks_for_union for each in controls]
        if place < num_given and bool(counts.all()):
            masses = torch.randint(0, 10, (len(settings),), generator=generator) / 10
            is_surest = batch.leave_given(masses).tolist()
            assert is_surest == [each.leave_given(mass) for each, mass in zip(controls, masses.tolist(), strict=True)]
            continue
        batch.leave(token_ids, counts)
        for control, token_id, is_counted in zip(controls, token_ids.tolist(), counts.tolist(), strict=True):
            if is_counted:
                control.leave(token_id)


@given(st.lists(configs, min_size=1, max_size=4), st.integers(0, 2**32))
def test_a_batch_of_rounds_chooses_what_each_sequence_would_alone(settings: list[SSDConfig], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    schemes = SchemeBatch.of(settings, CPU)
    signals = SignalBatch(SignalBatch.rows_of([config.signals for config in settings], CPU), REFUSAL_IDS)
    refusal_ids = set(REFUSAL_IDS.tolist())
    verifiers = [Verifier(GenerationParams(max_new_tokens=99), config, (), refusal_ids) for config in settings]
    for _ in range(6):
        counts = torch.randint(1, 5, (len(settings),), generator=generator).tolist()
        target = torch.randint(-4, 4, (sum(counts), VOCAB), generator=generator).float()
        draft = target + torch.randint(-2, 2, target.shape, generator=generator)
        scores = torch.rand(sum(counts), len(SIGNALS), generator=generator)
        predictions = [Predictions.of(logits, None, None) for logits in (target, draft)]
        drafted = draft.argmax(-1)
        turns = [Turn(verifier, range(count)) for verifier, count in zip(verifiers, counts, strict=True)]
        told = [dict(zip(SIGNALS, row, strict=True)) for row in scores.tolist()]
        used = [verifier.used_signals for verifier, count in zip(verifiers, counts, strict=True) for _ in range(count)]
        told = [{name: each[name] for name in names} for each, names in zip(told, used, strict=True)]
        expected = verify(turns, target, draft, drafted, None, told)
        followed = drafted.clone()
        followed[torch.tensor(counts).cumsum(0) - 1] = -1
        sizes = torch.tensor([c.sample_space_size for c, n in zip(settings, counts, strict=True) for _ in range(n)])
        positions = Positions(
            counts=counts,
            target=predictions[0],
            draft=predictions[1],
            drafted=drafted,
            followed=followed,
            allowed=None,
            scores=scores,
        )
        verdicts = verify_batch(positions, schemes, sizes, None, signals=signals)
        for row, choices in enumerate(expected):
            assert isinstance(choices, list)
            num = len(choices)
            assert verdicts.token_ids[row].tolist()[:num] == [choice.token_id for choice in choices]
            assert verdicts.is_union[row].tolist()[:num] == [choice.scheme is Scheme.UNION for choice in choices]
            raised = [bool(choice.look and choice.look.raised) for choice in choices]
            assert verdicts.has_alarm[row].tolist()[:num] == raised


@given(st.integers(1, 9), st.integers(0, 12), st.integers(0, 2**32))
def test_a_beginning_that_is_read_in_parts_is_heard_once_and_in_order(part: int, num_given: int, seed: int) -> None:
    """A prompt of 12 tokens in steps of a few, beside a request of another kind that the step reads before it."""
    generator = torch.Generator().manual_seed(seed)
    latch = bool(torch.rand(1, generator=generator) < 0.5)
    prompt, settings = 12, SignalConfig(probe=0.7, hold=4, smoothing=2, latch=latch)
    probe, logits = torch.rand(prompt, generator=generator), torch.randn(prompt, VOCAB, generator=generator)
    logits[:, 7] *= 4
    masses = logits.softmax(-1)[:, 7]
    config = SSDConfig(signals=settings)
    table = RequestTable(CPU, DraftSignals(refusal_ids=tuple(REFUSAL_IDS.tolist()), break_ids=(7,)))
    asked = {"config": config, "seed": None, "temperature": 0.0, "top_k": None, "top_p": 1.0}
    other = table.enter("other", RequestSettings(**asked))
    slot = table.enter("heard", RequestSettings(**asked, num_given=num_given))
    heard_after: list[int] = []
    for computed in range(0, prompt, part):
        length = min(part, prompt - computed)

        def heard(at: torch.Tensor, computed: int = computed) -> tuple[torch.Tensor, torch.Tensor]:
            positions = at - 3 + computed  # the other request's tokens come first
            heard_after.extend(positions.tolist())
            return logits[positions], probe[positions]

        places = given_places(
            [other, slot, None],
            starts=np.array([0, 3, 3 + length, 4 + length], dtype=np.int32),
            computed=np.array([20, computed, 0], dtype=np.int32),
            prompt_lengths=np.array([8, prompt, 9], dtype=np.int32),
            num_tokens=np.array([20, prompt, 9], dtype=np.int32),
            table=table,
        )
        listen(places, heard, table)
    expected = list(range(max(prompt - 1 - num_given, 0), prompt - 1)) if num_given else []
    assert heard_after == expected
    control, highest, surest = SignalControl(settings), -1.0, None
    for position in expected:
        score = {"probe": probe[position].item()}
        highest = max(highest, control.look(score).risk)
        surest = position if control.leave_given(masses[position].item()) else surest
    latched = table.latched(slot)
    if surest is None or not control.asks_for_union:
        assert latched is None
    else:
        assert latched is not None
        assert torch.equal(latched, logits[surest])
    assert table.latched(other) is None
    slots = torch.tensor([slot, other])
    assert table.signals(slots).asks_for_union.tolist() == [control.asks_for_union, False]
    assert table.beginnings(slots)[:, SIGNALS.index("probe")].tolist() == pytest.approx([highest, -1.0])
