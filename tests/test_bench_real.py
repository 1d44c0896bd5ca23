"""`ssd bench` on the default pair, as it is typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_case import bench


@pytest.mark.real
def test_bench_measures_llama_cpp_on_the_pairs_own_files(tmp_path: Path) -> None:
    rows = ["--only", "llama.cpp", "--only", "llama.cpp, speculative"]
    report, printed = bench(tmp_path, "--workload", "json", "--limit", "1", "--max-tokens", "8", *rows)
    assert [row["name"] for row in report["rows"]] == ["llama.cpp", "llama.cpp, speculative"]
    assert all(row["tokens_per_second"] > 0 for row in report["rows"])
    assert len({group[0]["text"] for [group] in report["samples"].values()}) == 1, "its speculation changes no answer"
    assert report["environment"]["llama_cpp"] in printed
