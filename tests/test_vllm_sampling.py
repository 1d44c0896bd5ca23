"""With sampling, every token that vLLM gives is distributed as the composite, to the letter of a chi-square test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from conftest import make_model, make_relative
from scipy.stats import chisquare
from tokenizers import Tokenizer, models
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from vllm_cases import VLLM_OPTIONS, save_pair

from ssd_engine import GenerationParams, GenerationResult, SSDConfig, SSDEngine
from ssd_engine.rule.predictions import Predictions
from ssd_engine.rule.sample_space import sample_spaces

pytest.importorskip("vllm")
VOCABULARY = 24
PROMPT = [3, 1, 4, 1, 5]
CONFIG = SSDConfig(sample_space_size=4, alpha_intersection=0.6, alpha_decay=0.0)
TEMPERATURE = 0.9
NUM_ANSWERS = 6000
Pair = tuple[PreTrainedModel, PreTrainedModel]


@pytest.fixture(scope="module")
def pair() -> Pair:
    target = make_model(4, VOCABULARY, hidden_size=128)
    target.lm_head.weight.data *= 0.3  # so that there is something to sample
    return target, make_relative(target, 5, 0.1)


@pytest.fixture(scope="module")
def engine(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SSDEngine]:
    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")))
    folders = save_pair(tmp_path_factory.mktemp("sampled"), *pair, tokenizer)
    with SSDEngine.from_pretrained(*folders, config=CONFIG, **VLLM_OPTIONS) as engine:
        yield engine


def composite(pair: Pair, contexts: torch.Tensor) -> torch.Tensor:
    """[N, V] what comes after `contexts` [N, T] under Intersection."""
    with torch.inference_mode():
        temperatures = torch.full((len(contexts),), TEMPERATURE)
        target, draft = (Predictions.of(model(contexts).logits[:, -1], temperatures, None) for model in pair)
    space = sample_spaces(target, draft, CONFIG.sample_space_size).intersection
    whole = torch.zeros_like(target.p)
    return whole.scatter_add_(-1, space.ids, space.probabilities(CONFIG.alpha_intersection))


def distributions(pair: Pair, num_tokens: int) -> list[torch.Tensor]:
    """[V] how the first, the second, ... token of an answer is distributed, over all that may stand before it."""
    contexts, weights = torch.tensor([PROMPT]), torch.ones(1)
    marginals = []
    for _ in range(num_tokens):
        joint = weights[:, None] * composite(pair, contexts)
        marginals.append(joint.sum(0))
        followed = torch.arange(VOCABULARY).repeat(len(contexts))[:, None]
        contexts = torch.cat([contexts.repeat_interleave(VOCABULARY, 0), followed], dim=1)
        weights = joint.flatten()
        contexts, weights = contexts[weights > 0], weights[weights > 0]
    return marginals


@pytest.mark.parametrize("truncation", [{}, {"top_k": 3, "top_p": 0.8}])
def test_tokens_are_distributed_as_the_composite(engine: SSDEngine, pair: Pair, truncation: dict[str, float]) -> None:
    params = GenerationParams(max_new_tokens=3, temperature=TEMPERATURE, **truncation)
    results = engine.batch([PROMPT] * NUM_ANSWERS, params)
    assert not [each for each in results if isinstance(each, Exception)][:1]
    answers = [result.token_ids for result in results if isinstance(result, GenerationResult)]
    assert len(answers) == NUM_ANSWERS
    if truncation:
        first = composite(pair, torch.tensor([PROMPT]))[0]
        best = first.topk(3)
        kept = best.values / best.values.sum()
        is_kept = kept.cumsum(0) - kept < 0.8
        expected = torch.zeros(VOCABULARY).scatter(0, best.indices[is_kept], kept[is_kept] / kept[is_kept].sum())
        assert_distributed([answer[0] for answer in answers], expected)
        return
    for place, expected in enumerate(distributions(pair, 3)):
        assert_distributed([answer[place] for answer in answers], expected)
    assert len({tuple(answer) for answer in answers}) > 100


def assert_distributed(token_ids: list[int], expected: torch.Tensor) -> None:
    counts = Counter(token_ids)
    likely = [i for i in range(VOCABULARY) if expected[i] * len(token_ids) >= 5]
    rest = sum(count for token_id, count in counts.items() if token_id not in likely)
    observed = [counts[i] for i in likely]
    wanted = [float(expected[i]) * len(token_ids) for i in likely]
    rest_wanted = len(token_ids) - sum(wanted)
    if rest_wanted < 1:
        assert rest <= 5
        wanted[0] += rest_wanted
        observed[0] += rest
    else:
        observed.append(rest)
        wanted.append(rest_wanted)
    assert chisquare(observed, wanted).pvalue > 1e-4, (observed, wanted)


def test_the_draft_of_such_a_pair_is_often_accepted_and_often_not(engine: SSDEngine) -> None:
    """Else the test above would see one side of the rule alone."""
    params = GenerationParams(max_new_tokens=40, temperature=TEMPERATURE)
    results = [r for r in engine.batch([PROMPT] * 20, params) if isinstance(r, GenerationResult)]
    rate = sum(r.trace.match_rate for r in results) / len(results)
    assert 0.2 < rate < 0.95
