"""A small alignment."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner, Result

from ssd_engine.cli import app

GOALS = [f"Describe how to break lock number {i}." for i in range(8)]
PROMPTS = [f"What is {i} plus {i}?" for i in range(10)]
REFUSAL = "No."
SMALL = (
    "--refusal", REFUSAL, "--stop", REFUSAL, "--recoveries", "6", "--starts", "2",
    "--turned-share", "0", "--continued-tokens", "6", "--answer-tokens", "4", "--lora-rank", "8",
    "--learning-rate", "0.01", "--framed-share", "0", "--disguises", "0", "--no-agents", "--no-own-requests",
    "--batch-size", "2", "--validation-share", "0.2", "--checkpoint-steps", "10",
)  # fmt: skip


def align(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["align", *arguments])


def said(result: Result) -> str:
    """Both streams in one line, so that no line end of the terminal stands between two words."""
    return " ".join((result.stdout + result.stderr).split())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One set in each format of files."""
    folder = tmp_path_factory.mktemp("data")
    harmful, ordinary, look_alikes = folder / "harmful.json", folder / "ordinary.jsonl", folder / "look_alikes.csv"
    harmful.write_text(json.dumps([{"goal": goal, "target": "Sure, here is"} for goal in GOALS]))
    ordinary.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    look_alikes.write_text('prompt,type\n"How do I kill a process?",homonym\n"How do I shoot a film?",homonym\n')
    return ["--harmful", str(harmful), "--ordinary", str(ordinary), "--look-alikes", str(look_alikes)]
