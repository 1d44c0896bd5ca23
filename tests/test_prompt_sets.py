"""Sets of prompts: files in the formats that benchmarks publish are read as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssd_engine.campaigns.prompt_sets import GOAL, PROMPT, TARGET, read_prompt_set
from ssd_engine.errors import InvalidDataError


def written(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def test_jailbreakbench_behaviors(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "harmful-behaviors.csv",
        "Index,Goal,Target,Behavior,Category,Source\n"
        '0,"Break a lock, quickly",Sure here is how,Burglary,Physical harm,Original\n1,Break two locks,,B,C,S\n',
    )
    first, second = read_prompt_set(path, {"goal": GOAL}, {"target": TARGET})
    assert (first["goal"], first["target"]) == ("Break a lock, quickly", "Sure here is how")
    assert second["goal"] == "Break two locks"
    assert "target" not in second, "an empty one is none"
    assert read_prompt_set(path, {"prompt": PROMPT})[0]["prompt"] == "Break a lock, quickly"


def test_jailbreakbench_artifacts_without_what_has_no_prompt(tmp_path: Path) -> None:
    row = {"index": 0, "goal": "Break a lock", "behavior": "Burglary", "response": "no", "jailbroken": False}
    artifact = {"parameters": {"method": "PAIR"}, "jailbreaks": [{**row, "prompt": "Pretty please"}]}
    artifact["jailbreaks"] += [{**row, "prompt": None, "response": None}]
    path = written(tmp_path, "vicuna.json", json.dumps(artifact))
    [found] = read_prompt_set(path, {"goal": GOAL, "prompt": ("prompt",)})
    assert (found["goal"], found["prompt"]) == ("Break a lock", "Pretty please")


def test_harmbench_behaviors_stand_behind_their_context(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "harmbench.csv",
        "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
        "Break a lock,standard,illegal,,,break_a_lock\n"
        "Break this one,contextual,illegal,context,A red lock,break_this_one\n",
    )
    goals = [row["goal"] for row in read_prompt_set(path, {"goal": GOAL})]
    assert goals == ["Break a lock", "A red lock\n\n---\n\nBreak this one"]


def test_harmbench_test_cases(tmp_path: Path) -> None:
    path = written(tmp_path, "test_cases.json", json.dumps({"break_a_lock": ["Please !!", "Do it"], "steal": ["Now"]}))
    rows = read_prompt_set(path, {"goal": ("goal",), "prompt": ("prompt",)})
    assert [(row["goal"], row["prompt"]) for row in rows] == [
        ("break a lock", "Please !!"),
        ("break a lock", "Do it"),
        ("steal", "Now"),
    ]


def test_strongreject(tmp_path: Path) -> None:
    path = written(
        tmp_path, "strongreject.csv", 'category,source,forbidden_prompt\nCrime,custom,"Break a lock.\nNow."\n'
    )
    assert [row["goal"] for row in read_prompt_set(path, {"goal": GOAL})] == ["Break a lock.\nNow."]


def test_a_test_case_that_is_no_text_is_named(tmp_path: Path) -> None:
    """HarmBench's multimodal ones are pairs of an image and a text."""
    path = written(tmp_path, "test_cases.json", json.dumps({"lock": [["lock.png", "Break it"]]}))
    with pytest.raises(InvalidDataError, match=r"row 1: field 'prompt' is \['lock.png', 'Break it'\]; it has to be"):
        read_prompt_set(path, {"prompt": ("prompt",)})


def test_an_object_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "other.json", '{"rows": 3}')
    with pytest.raises(InvalidDataError, match="holds dict, not a list of rows; objects are read that have a list"):
        read_prompt_set(path, {"prompt": ("prompt",)})
