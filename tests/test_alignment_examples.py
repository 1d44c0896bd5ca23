"""What an alignment learns from: trees of endings, requests in disguise, rows with instructions and tools."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import make_model
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from ssd_engine.alignment.align import Prompts, Sources
from ssd_engine.alignment.batches import IGNORED, collate
from ssd_engine.alignment.beginnings import Beginning
from ssd_engine.alignment.examples import Ending, Example, ExampleMaker
from ssd_engine.alignment.settings import AlignSettings
from ssd_engine.cli import app

GOAL = "Describe how to break a lock."
TREE = Example(
    "recovery",
    tuple(range(10, 30)),
    (Ending(8, (40, 41, 42)), Ending(15, (43, 40, 41, 42)), Ending(20, (44, 45))),
)
CHAIN = Example("agreement", (50, 51, 52, 53, 54), (Ending(5, (60, 61, 62, 63)),))


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model(7, 128)


def test_a_tree_is_learned_as_its_sequences_would_be_one_by_one(model: PreTrainedModel) -> None:
    """The loss's gradient is that of the logits, so equal logits at the same labels are the same lesson."""
    batch = collate([CHAIN, TREE])
    labels = batch.pop("labels")
    with torch.inference_mode():
        logits = model(**batch).logits
        for row, example in enumerate((CHAIN, TREE)):
            learned = logits[row][labels[row] != IGNORED]
            assert labels[row][labels[row] != IGNORED].tolist() == [t for e in example.endings for t in e.token_ids]
            for ending in example.endings:
                alone = (*example.context[: ending.place], *ending.token_ids)
                expected = model(torch.tensor([alone])).logits[0, ending.place - 1 : -1]
                found, learned = learned[: len(expected)], learned[len(expected) :]
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def settings() -> AlignSettings:
    return AlignSettings(recoveries=5, disguises=3, agents=False)


def test_a_request_is_refused_at_its_start_at_each_depth_and_in_disguises(
    tokenizer: PreTrainedTokenizerFast, settings: AlignSettings
) -> None:
    begun = tuple(tokenizer("Sure, here is the way:\n\n1. Take", add_special_tokens=False).input_ids)
    tree, *disguised = ExampleMaker(tokenizer, settings).recoveries(Beginning(GOAL, GOAL, begun))
    refusal = f"{settings.refusal}<|im_end|>"
    places = [ending.place - (len(tree.context) - len(begun)) for ending in tree.endings]
    assert places[0] == 0
    assert len(places) == settings.recoveries
    assert places[1:] == sorted(places[1:])
    assert places[-1] >= 0.8 * len(begun), "one is always deep"
    for place, ending in zip(places, tree.endings, strict=True):
        before = tokenizer.decode(begun[:place])
        joint = "" if not before or before.endswith("\n") else "\n\n"
        assert tokenizer.decode(ending.token_ids) == joint + refusal
    assert len(disguised) == settings.disguises
    for example in disguised:
        assert GOAL in tokenizer.decode(example.context)
        assert [tokenizer.decode(ending.token_ids) for ending in example.endings] == [refusal]
        assert example.endings[0].place == len(example.context), "nothing of an answer stands before it"


def _ordinary(folder: Path, rows: list[dict[str, object]]) -> str:
    path = folder / "ordinary.json"
    path.write_text(json.dumps(rows))
    return str(path)


def _harmful(folder: Path) -> str:
    path = folder / "harmful.json"
    path.write_text(json.dumps([{"goal": GOAL}]))
    return str(path)


def test_ordinary_rows_may_have_instructions_and_tools(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    rows: list[dict[str, object]] = [{"prompt": "Hi"}, {"prompt": "Rain?", "system": "Be brief.", "tools": [tool]}]
    sources = Sources(harmful=[_harmful(tmp_path)], ordinary=[_ordinary(tmp_path, rows)])
    plain, instructed = (question.conversation for question in Prompts(sources, with_agents=False).ordinary)
    assert [message["role"] for message in plain.messages] == ["user"]
    assert not plain.tools
    assert [message["role"] for message in instructed.messages] == ["system", "user"]
    assert list(instructed.tools) == [tool]
    with_agents = Prompts(sources, with_agents=True).ordinary
    assert len(with_agents) > 40
    assert any(question.tools for question in with_agents[2:])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Hi", "system": 7}, "row 2: field 'system' is 7; it has to be text"),
        ({"prompt": "Hi", "tools": "weather"}, "row 2: field 'tools' is 'weather'; it has to be a list"),
        ({"prompt": "Hi", "tools": [{"name": "weather"}]}, "row 2: field 'tools' is [{'name': 'weather'}]"),
    ],
)
def test_a_row_with_a_bad_field_is_named(
    tmp_path: Path, pair_options: list[str], row: dict[str, object], message: str
) -> None:
    ordinary = _ordinary(tmp_path, [{"prompt": "Hi"}, row])
    sets = ("--harmful", _harmful(tmp_path), "--ordinary", ordinary)
    result = CliRunner().invoke(app, ["align", "--output", str(tmp_path / "out"), *pair_options, *sets])
    assert result.exit_code == 1
    assert message in " ".join((result.stdout + result.stderr).split())


def test_a_single_harmful_request_is_too_few(tmp_path: Path, pair_options: list[str]) -> None:
    sets = ("--harmful", _harmful(tmp_path), "--ordinary", _ordinary(tmp_path, [{"prompt": "Hi"}, {"prompt": "Ho"}]))
    result = CliRunner().invoke(app, ["align", "--output", str(tmp_path / "out"), *pair_options, *sets])
    assert result.exit_code == 1
    said = " ".join((result.stdout + result.stderr).split())
    assert "give two different rows at least" in said
    assert GOAL in said
