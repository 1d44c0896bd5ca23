"""`ssd bench --backend vllm`, as it is typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")


def test_bench_measures_ssd_on_vllm_beside_vllms_own(small_pair: tuple[str, str], tmp_path: Path) -> None:
    report_file = tmp_path / "report.json"
    target, draft = small_pair
    command = ["bench", "--backend", "vllm", "--target", target, "--draft", draft, "--vllm-dtype", "float32"]
    settings = ["--requests", "1", "--requests", "2", "--limit", "2", "--max-tokens", "8", "--num-draft-tokens", "2"]
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from ssd_engine.cli import main; main()"),
            *(*command, *settings, "--output", str(report_file)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(report_file.read_text())
    rows = {(row["name"], row["requests"]): row for row in report["rows"]}
    names = ["vllm", "vllm, speculative", "vllm, ssd", "ssd"]
    assert list(rows) == [(name, requests) for requests in (1, 2) for name in names]
    assert rows["vllm", 1]["ratio_to_baseline"] == rows["vllm", 2]["ratio_to_baseline"] == 1
    assert rows["vllm, ssd", 1]["tokens_per_round"] <= 2, "SSD has no token beyond those drafted"
    assert "1 at once: a round of vllm, ssd takes" in done.stdout
    assert "2 at once: a round of vllm, ssd takes" in done.stdout
    assert report["environment"]["vllm"] in done.stdout
