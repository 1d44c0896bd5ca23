"""`ssd bench --backend vllm`, as it is typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_case import bench

pytest.importorskip("vllm")


def test_bench_measures_ssd_on_vllm_beside_vllms_own(small_pair: tuple[str, str], tmp_path: Path) -> None:
    target, draft = small_pair
    command = ["--backend", "vllm", "--target", target, "--draft", draft, "--vllm-dtype", "float32"]
    settings = ["--requests", "1", "--requests", "2", "--limit", "2", "--max-tokens", "8", "--num-draft-tokens", "2"]
    report, printed = bench(tmp_path, *command, *settings)
    rows = {(row["name"], row["requests"]): row for row in report["rows"]}
    names = ["vllm", "vllm, speculative", "vllm, ssd", "ssd"]
    assert list(rows) == [(name, requests) for requests in (1, 2) for name in names]
    assert rows["vllm", 1]["ratio_to_baseline"] == rows["vllm", 2]["ratio_to_baseline"] == 1
    assert rows["vllm, ssd", 1]["tokens_per_round"] <= 2, "SSD has no token beyond those drafted"
    assert "1 at once: a round of vllm, ssd takes" in printed
    assert "2 at once: a round of vllm, ssd takes" in printed
    assert report["environment"]["vllm"] in printed
