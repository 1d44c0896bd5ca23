"""`ssd align` and `ssd eval` for a pair of two vocabularies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from alignment_cases import GOALS, SMALL, align, data  # noqa: F401 (a fixture)
from bridge_cases import TEXT, byte_level
from command_cases import ssd
from conftest import make_model
from transformers import AutoTokenizer

from ssd_engine import GenerationParams, SSDEngine


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("two-vocabularies")
    for seed, (name, tokenizer) in enumerate((("target", byte_level(340, TEXT[:3])), ("draft", byte_level(400)))):
        make_model(seed, len(tokenizer), hidden_size=32).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return str(folder / "target"), str(folder / "draft")


@pytest.fixture(scope="module")
def adapter(folders: tuple[str, str], data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("aligned") / "adapter"
    pair = ["--target", folders[0], "--draft", folders[1]]
    result = align("--output", str(output), *pair, *data, *SMALL, "--epochs", "1")
    assert result.exit_code == 0, result.output
    return output


def test_what_the_draft_learns_is_the_target_s_answer_in_the_draft_s_tokens(
    adapter: Path, folders: tuple[str, str]
) -> None:
    target, draft = (AutoTokenizer.from_pretrained(folder) for folder in folders)
    rows = [json.loads(line) for line in (adapter / "work" / "answers.jsonl").read_text().splitlines()]
    assert {row["writer"] for row in rows} == {"target"}
    for row in rows:
        read = draft.decode(row["token_ids"], skip_special_tokens=True)
        assert read.encode(errors="replace") == row["text"].encode(errors="replace")
    assert any(target.decode(row["token_ids"], skip_special_tokens=True) != row["text"] for row in rows)


def test_the_adapter_and_its_signals_guard_the_target(adapter: Path, folders: tuple[str, str]) -> None:
    prompt = [{"role": "user", "content": GOALS[0]}]
    with SSDEngine.from_pretrained(*folders, draft_adapter=adapter) as engine:
        config = engine.config.replaced(signals={"refusal_mass": 0.0, "probe": 0.0})
        trace = engine.generate(prompt, GenerationParams(max_new_tokens=8, ssd=config)).trace
    assert len(trace.risk_scores) == len(trace.bridge_mass) > 0
    assert {alarm.signal for alarm in trace.alarms} == {"refusal_mass", "probe"}


def test_the_pair_is_evaluated_as_any_other(
    adapter: Path,
    folders: tuple[str, str],
    data: list[str],
    tmp_path: Path,
) -> None:
    result = ssd(
        "eval", "--output", str(tmp_path / "report"), "--target", folders[0], "--draft", folders[1],
        "--draft-adapter", str(adapter), "--harmful", data[1], "--limit", "2", "--form", "prefill", "--prefill", "3",
        "--contestant", "ssd", "--contestant", "target", "--contestant", "draft",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (tmp_path / "report" / "answers.jsonl").read_text().splitlines()]
    assert {row["contestant"] for row in rows} == {"ssd", "target", "draft"}
    assert not any(row.get("error") for row in rows)
