"""The batched rule decides what the rule of one sequence decides."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssd_engine.config import GenerationParams, SSDConfig
from ssd_engine.rule.predictions import Predictions
from ssd_engine.rule.scheme import Scheme, SchemeController
from ssd_engine.rule.scheme_batch import SchemeBatch
from ssd_engine.rule.verifier import Verifier
from ssd_engine.rule.verify import Turn, verify
from ssd_engine.rule.verify_batch import Positions, verify_batch

CPU = torch.device("cpu")

configs = st.builds(
    SSDConfig,
    sample_space_size=st.integers(1, 6),
    alpha_intersection=st.sampled_from([0.3, 0.45, 0.9, 1.0, 1e20]),
    alpha_union=st.sampled_from([0.8, 2.0]),
    bin_size=st.integers(1, 5),
    match_threshold=st.sampled_from([0.3, 0.5, 0.6, 2 / 3, 0.7, 1.0]),
    threshold_decay=st.sampled_from([0.0, 0.1, 0.15, 1 / 30, 0.35]),
    alpha_decay=st.sampled_from([0.0, 0.07, 0.15]),
    alpha_intersection_min=st.sampled_from([0.1, 0.3]),
)


@given(st.lists(configs, min_size=1, max_size=4), st.integers(0, 2**32))
def test_every_row_follows_its_own_scheme_controller(settings: list[SSDConfig], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = SchemeBatch.of(settings, CPU)
    controllers = [SchemeController(config) for config in settings]
    for _ in range(40):
        matched = torch.rand(len(settings), generator=generator) < 0.6
        counts = torch.rand(len(settings), generator=generator) < 0.9
        batch.record(matched, counts)
        for controller, is_match, is_counted in zip(controllers, matched.tolist(), counts.tolist(), strict=True):
            if is_counted:
                controller.record(matched=is_match)
        assert batch.is_union.tolist() == [controller.scheme is Scheme.UNION for controller in controllers]
        assert batch.threshold.tolist() == [controller.threshold for controller in controllers]
        weights = torch.where(batch.is_union, batch.alpha_union, batch.alpha_intersection)
        assert weights.tolist() == torch.tensor([controller.alpha for controller in controllers]).tolist()


@pytest.mark.parametrize("is_masked", [False, True])
@given(st.lists(configs, min_size=1, max_size=4), st.integers(0, 2**32))
def test_a_batch_of_rounds_chooses_what_each_sequence_would_alone(
    is_masked: bool, settings: list[SSDConfig], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    vocab = 17
    batch = SchemeBatch.of(settings, CPU)
    verifiers = [Verifier(GenerationParams(max_new_tokens=99), config, eos_ids=()) for config in settings]
    for _ in range(8):
        counts = torch.randint(1, 5, (len(settings),), generator=generator).tolist()
        # Whole numbers, so that there are ties.
        target = torch.randint(-4, 4, (sum(counts), vocab), generator=generator).float()
        draft = target + torch.randint(-2, 2, target.shape, generator=generator)
        allowed = None
        if is_masked:
            allowed = torch.rand(sum(counts), vocab, generator=generator) < 0.7
            allowed[:, :2] = True  # one choice alone would be a forced token, which nobody decides
        predictions = [Predictions.of(logits, None, allowed) for logits in (target, draft)]
        drafted = predictions[1].logits.argmax(-1)
        turns = [Turn(verifier, range(count)) for verifier, count in zip(verifiers, counts, strict=True)]
        expected = verify(turns, target, draft, drafted, allowed)
        followed = drafted.clone()
        followed[torch.tensor(counts).cumsum(0) - 1] = -1
        sizes = torch.tensor([c.sample_space_size for c, n in zip(settings, counts, strict=True) for _ in range(n)])
        positions = Positions(
            counts=counts,
            target=predictions[0],
            draft=predictions[1],
            drafted=drafted,
            followed=followed,
            allowed=allowed,
        )
        verdicts = verify_batch(positions, batch, sizes, None)
        for row, choices in enumerate(expected):
            assert isinstance(choices, list)
            num = len(choices)
            assert verdicts.token_ids[row].tolist()[:num] == [choice.token_id for choice in choices]
            assert set(verdicts.token_ids[row].tolist()[num:]) <= {-1}
            assert verdicts.matched[row].tolist()[:num] == [choice.matched for choice in choices]
            assert verdicts.is_union[row].tolist()[:num] == [choice.scheme is Scheme.UNION for choice in choices]
