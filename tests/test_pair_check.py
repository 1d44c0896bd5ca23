"""`ssd pair check`: whether a draft can guard a target, and what to expect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bridge_cases import TEXT, byte_level
from command_cases import ssd
from conftest import make_model


@pytest.fixture
def two_vocabularies(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of a target and a draft of two vocabularies."""
    for name, tokenizer in (("target", byte_level(340, TEXT[:3])), ("draft", byte_level(400))):
        make_model(1, len(tokenizer), hidden_size=16).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return tmp_path / "target", tmp_path / "draft"


def test_a_pair_of_two_vocabularies_is_compared_and_tried(two_vocabularies: tuple[Path, Path]) -> None:
    result = ssd("pair", "check", *map(str, two_vocabularies), "--prompts", "1")
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "of the target's 337 tokens are among the draft's" in said
    assert "the draft reads 1." in said
    assert "match rate" in said
    assert "bridge mass" in said
    assert "times as fast as the target alone" in said
    assert said.endswith("This pair can work.")


def test_it_can_be_read_by_programs_and_leave_the_weights_alone(two_vocabularies: tuple[Path, Path]) -> None:
    result = ssd("pair", "check", *map(str, two_vocabularies), "--prompts", "0", "--json")
    found = json.loads(result.stdout)
    assert found["can_work"]
    assert found["trial"] is None
    match = found["pair"]["vocabularies"]
    assert 0 < match["shared_tokens"] < match["target_tokens"] == 337
    assert 0 < match["shared_text"] < 1 < match["reading_ratio"]


def test_a_pair_of_one_vocabulary_needs_no_bridge(two_vocabularies: tuple[Path, Path]) -> None:
    target = str(two_vocabularies[0])
    result = ssd("pair", "check", target, target, "--prompts", "1")
    said = " ".join(result.stdout.split())
    assert "vocabulary one, of 340 tokens" in said
    assert "bridge mass" not in said


def test_a_pair_that_cannot_work_is_refused_with_the_figure(two_vocabularies: tuple[Path, Path]) -> None:
    file = two_vocabularies[1] / "tokenizer.json"
    known = json.loads(file.read_text())
    known["model"] |= {"vocab": {chr(0x400 + i): i for i in known["model"]["vocab"].values()}, "merges": []}
    file.write_text(json.dumps(known))
    result = ssd("pair", "check", *map(str, two_vocabularies))
    said = " ".join(result.stdout.split())
    assert result.exit_code == 1
    assert "changes text: 7 of 7 samples do not come back" in said
    assert said.endswith("This pair cannot work.")


def test_answers_of_one_token_have_no_speed(two_vocabularies: tuple[Path, Path]) -> None:
    """Whatever the target writes first ends its answer."""
    file = two_vocabularies[0] / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": list(range(340))}))
    result = ssd("pair", "check", *map(str, two_vocabularies), "--prompts", "1")
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "tokens/s not known: the answers ended in their first round" in said
    assert "times as fast" not in said


def test_a_model_that_is_nowhere_is_told() -> None:
    result = ssd("pair", "check", "/nowhere/model")
    assert result.exit_code == 1
    assert "'/nowhere/model' does not exist; give a folder" in " ".join(result.stdout.split())
