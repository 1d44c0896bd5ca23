"""How tests run the `ssd` command, offline and on a small random pair."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import make_model, make_relative
from huggingface_hub import constants
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from ssd_engine.cli import app

LONG_ANSWER = 8000
"""Tokens: more than a test waits for."""
PATIENCE = 120
"""Seconds without a sign of life after which a test on a terminal fails instead of waiting for ever."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The options that name a small pair in folders."""
    folder = tmp_path_factory.mktemp("pair")
    target = make_model(1, len(tokenizer), context=2 * LONG_ANSWER)
    for name, model in (("target", target), ("draft", make_relative(target, 2, 0.15))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return ["--target", str(folder / "target"), "--draft", str(folder / "draft")]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub, no package index, nothing fetched or said yet, and a wide terminal."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("SSD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")


def ssd(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=text)


def answer(*arguments: str, text: str | None = None) -> dict[str, object]:
    """What `ssd run --json` prints."""
    result = ssd("run", *arguments, "--json", text=text)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)
