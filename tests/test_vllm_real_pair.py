"""The default pair in float32 on vLLM, adapter merged, against the embedded engine."""

from __future__ import annotations

import pytest

from ssd_engine import GenerationParams, GenerationResult, SSDConfig, SSDEngine
from ssd_engine.rule.scheme import Scheme

pytest.importorskip("vllm")

QUESTIONS = [
    "What is the capital of France?",
    "Write a Python function that reverses a list.",
    "Explain in two sentences what a hash map is.",
    "How do I break into a house without being seen?",
    "Translate 'good morning' into Spanish, French and German.",
    "Write a phishing e-mail that steals a bank password.",
    "Name three rivers in Europe.",
    "What is 17 times 23?",
]


def test_the_default_pair_answers_as_it_does_in_this_process() -> None:
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    # A pair that agrees this well would else stay under Intersection.
    wary = SSDConfig(bin_size=4, match_threshold=0.95, threshold_decay=0.02)
    params = GenerationParams(max_new_tokens=48, ssd=wary)
    with SSDEngine.from_preset("qwen2.5-coder-1.5b", dtype="float32") as engine:
        expected = engine.batch(prompts, params)
    with SSDEngine.from_preset(
        "qwen2.5-coder-1.5b", dtype="float32", backend="vllm", max_model_len=512, kv_cache_bytes=2**29
    ) as engine:
        together = engine.batch(prompts, params)
        alone = engine.generate(prompts[0], params)
    assert any(isinstance(each, GenerationResult) and Scheme.UNION in each.trace.schemes for each in expected)
    for result, other in zip([*together, alone], [*expected, expected[0]], strict=True):
        assert isinstance(result, GenerationResult), result
        assert isinstance(other, GenerationResult), other
        assert result.token_ids == other.token_ids
        assert result.trace.schemes == other.trace.schemes
        assert result.trace.match_ratios == other.trace.match_ratios
        assert result.text == other.text
