"""`ssd align` on small random pairs: what it learns, what it writes, and how it goes on after a kill."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from alignment_cases import GOALS, PROMPTS, REFUSAL, SMALL, align, data, said  # noqa: F401 (fixtures)
from conftest import make_model
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast
from typer.testing import Result

from ssd_engine import DraftSignals, GenerationParams, SSDConfig, SSDEngine
from ssd_engine.alignment.beginnings import Beginning, make_beginnings
from ssd_engine.alignment.training import _Reports
from ssd_engine.campaigns.journal import Journal
from ssd_engine.config import SignalConfig
from ssd_engine.errors import ModelLoadError

BEGINNINGS: list[Beginning] = []


def seen_in(seen: list[Beginning]) -> Callable[..., list[Beginning]]:
    def make(*arguments: Any) -> list[Beginning]:
        made = make_beginnings(*arguments)
        seen.extend(made)
        return made

    return make


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory, pair_options: list[str], data: list[str]) -> tuple[Path, Result]:
    output = tmp_path_factory.mktemp("aligned") / "adapter"
    merged = str(output.parent / "merged")
    options = (*SMALL, "--epochs", "25", "--patience", "99", "--merged", merged)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssd_engine.alignment.align.make_beginnings", seen_in(BEGINNINGS))
        result = align("--output", str(output), *pair_options, *data, *options)
    assert result.exit_code == 0, result.output
    return output, result


def test_the_draft_learns_to_refuse_at_once_and_in_the_midst_of_an_answer(
    aligned: tuple[Path, Result], pair_options: list[str]
) -> None:
    """In 25 passes over six of the eight requests."""
    draft = pair_options[3]
    params = GenerationParams(max_new_tokens=8, decoding="target")
    refused = {}
    for name, model in (("before", draft), ("after", str(aligned[0].parent / "merged"))):
        with SSDEngine.from_pretrained(model, draft) as engine:
            at_once = [engine.generate([{"role": "user", "content": goal}], params).text for goal in GOALS]
            begun = [
                engine.generate(
                    [{"role": "user", "content": goal}, {"role": "assistant", "content": "Sure, here"}],
                    params.replaced(continue_final_message=True),
                ).text
                for goal in GOALS
            ]
        refused[name] = (at_once.count(REFUSAL), [text.strip("… \n") for text in begun].count(REFUSAL))
    assert refused["before"] == (0, 0)
    assert min(refused["after"]) >= 5, refused


def test_the_adapter_goes_into_an_engine_and_changes_its_draft(
    aligned: tuple[Path, Result], pair_options: list[str]
) -> None:
    _, target, _, draft = pair_options
    prompt = [{"role": "user", "content": GOALS[0]}]
    params = GenerationParams(max_new_tokens=16)
    with SSDEngine.from_pretrained(target, draft) as engine:
        before = engine.generate(prompt, params)
    with SSDEngine.from_pretrained(target, draft, draft_adapter=aligned[0]) as engine:
        assert engine.generate(prompt, params).trace.matched != before.trace.matched


@pytest.mark.parametrize("signal", ["refusal_mass", "probe"])
def test_signals_come_with_the_adapter_and_tell_harmful_requests(
    aligned: tuple[Path, Result], pair_options: list[str], signal: str
) -> None:
    _, target, _, draft = pair_options
    params = GenerationParams(max_new_tokens=1, ssd=SSDConfig(signals=SignalConfig(**{signal: 0.5})))
    with SSDEngine.from_pretrained(target, draft, draft_adapter=aligned[0]) as engine:
        harmful, harmless = (
            [engine.generate([{"role": "user", "content": text}], params).trace.risk_scores[0] for text in texts]
            for texts in (GOALS, PROMPTS)
        )
    assert sum(harmful) / len(harmful) > 0.5 > sum(harmless) / len(harmless)
    assert min(sorted(harmful)[2:]) > max(harmless), "most of the harmful ones, two of which were kept from training"


def test_refusals_that_break_a_beginning_off_are_told_from_those_at_once(
    aligned: tuple[Path, Result], tokenizer: PreTrainedTokenizerFast
) -> None:
    signals = DraftSignals.load(aligned[0])
    breaking, at_once = (tokenizer.encode(text)[0] for text in ("…\n\nI have to stop here", REFUSAL))
    assert breaking in signals.break_ids
    assert at_once in set(signals.refusal_ids) - set(signals.break_ids)
    assert set(signals.break_ids) <= set(signals.refusal_ids)


def test_an_alignment_goes_on_from_an_adapter_in_its_last_layers_alone_with_texts_by_the_draft(
    aligned: tuple[Path, Result], pair_options: list[str], data: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "further"
    options = (*SMALL, "--start", str(aligned[0]), "--trained-layers", "1", "--writer", "draft")
    result = align("--output", str(output), *pair_options, *data, *options)
    assert result.exit_code == 0, result.output
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (aligned[0], output))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".layers.1." in name}
    card = (output / "README.md").read_text()
    assert re.search(r"began with an adapter of rank 8 \(SHA-256 [0-9a-f]{16}…\)", card)
    assert str(aligned[0]) not in card
    assert "answers of the draft to harmless prompts" in card
    answers = [json.loads(line) for line in (output / "work" / "answers.jsonl").read_text().splitlines()]
    assert {answer["writer"] for answer in answers} == {"draft"}


def test_the_target_answers_requests_with_instructions_whoever_writes_the_rest(
    pair_options: list[str], data: list[str], tmp_path: Path
) -> None:
    output, instructed = tmp_path / "adapter", tmp_path / "instructed.json"
    rows = [{"prompt": f"What is {i} times {i}?", "system": "Be brief."} for i in range(4)]
    instructed.write_text(json.dumps(rows))
    options = (*SMALL, "--ordinary", str(instructed), "--writer", "draft", "--beginnings", "2", "--epochs", "1")
    seen: list[Beginning] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssd_engine.alignment.align.make_beginnings", seen_in(seen))
        result = align("--output", str(output), *pair_options, *data, *options)
    assert result.exit_code == 0, result.output
    answers = [json.loads(line) for line in (output / "work" / "answers.jsonl").read_text().splitlines()]
    assert {answer["writer"] for answer in answers if answer["question"]["system"]} == {"target"}
    assert {answer["writer"] for answer in answers if not answer["question"]["system"]} == {"draft"}
    assert sorted(beginning.goal for beginning in seen) == sorted(2 * GOALS)


def test_an_adapter_for_another_base_is_refused(
    aligned: tuple[Path, Result], pair_options: list[str], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    other = tmp_path / "other"
    shutil.copytree(pair_options[3], other)
    make_model(5, len(tokenizer)).save_pretrained(other)
    with pytest.raises(ModelLoadError, match="was made for draft, and this draft has other weights"):
        SSDEngine.from_pretrained(pair_options[1], other, draft_adapter=aligned[0])


def test_the_card_tells_data_settings_losses_and_validation(aligned: tuple[Path, Result]) -> None:
    output, result = aligned
    card = (output / "README.md").read_text()
    for expected in (
        "base_model: draft",
        "| harmful | harmful.json, SHA-256",
        "| look-alikes | look_alikes.csv",
        "epochs 25",
        "| recovery rate | 0.0% |",
        "| step | training loss |",
    ):
        assert expected in card
    assert str(output.parent) not in card + (output / "adapter_config.json").read_text()
    assert "recovery rate" in said(result)
    for step in ("Loading the target", "Loading the draft", "Training, loss", "Validation: "):
        assert step in said(result)
    assert sorted(path.suffix for path in output.iterdir() if path.is_file()) == [
        ".json", ".json", ".json", ".md", ".safetensors", ".safetensors"
    ]  # fmt: skip


def test_no_beginning_of_a_harmful_answer_is_written_to_disk(aligned: tuple[Path, Result]) -> None:
    answers = (aligned[0] / "work" / "answers.jsonl").read_text()
    prompts = [json.loads(line)["question"]["prompt"] for line in answers.splitlines()]
    assert all("process" in prompt or "film" in prompt for prompt in prompts if prompt not in PROMPTS)
    assert len(BEGINNINGS) == len(GOALS)
    assert all(len(beginning.token_ids) > 5 for beginning in BEGINNINGS)
    ids = [", ".join(map(str, beginning.token_ids[-6:])) for beginning in BEGINNINGS]
    for path in aligned[0].rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(told.encode() in content for told in (*GOALS, *ids)), path


def test_a_killed_alignment_goes_on_and_ends_as_an_unbroken_one(
    tmp_path: Path, pair_options: list[str], data: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while the target answers, and again while it trains."""
    options = [*pair_options, *data, *SMALL, "--epochs", "8", "--patience", "3"]
    assert align("--output", str(tmp_path / "unbroken"), *options).exit_code == 0
    broken = tmp_path / "broken"
    append, on_step_end = Journal.append, _Reports.on_step_end

    def killed_while_answering(journal: Journal, row: dict[str, Any]) -> None:
        if len(journal.read()) >= 5:  # more than one may come at a time
            raise KeyboardInterrupt
        append(journal, row)

    def killed_while_training(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == 15:
            raise KeyboardInterrupt
        on_step_end(self, args, state, control, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", killed_while_answering)
        assert align("--output", str(broken), *options).exit_code != 0
    other = align("--output", str(broken), *options, "--seed", "1", "--draft-quantization", "int8", "--resume")
    assert "draft_quantization was None and is 'int8'; seed was 0 and is 1" in said(other)
    assert "--resume goes on with it" in said(align("--output", str(broken), *options))
    with monkeypatch.context() as patch:
        patch.setattr(_Reports, "on_step_end", killed_while_training)
        assert align("--output", str(broken), *options, "--resume").exit_code != 0
    ended = align("--output", str(broken), *options, "--resume")
    assert ended.exit_code == 0, ended.output
    assert "Going on from the checkpoint of step 10." in said(ended)
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "unbroken", broken))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("changed", "code", "message"),
    [
        (["--harmful"], 1, "there is no harmful set"),
        (["--ordinary"], 1, "there is no ordinary set"),
        (["--epochs", "0"], 2, "epochs=0"),
        (["--continued-tokens", "501"], 2, "continued_tokens=501"),
        (["--probe-layer", "2"], 1, "probe_layer=2: the draft has 2 layers; give one below the last"),
        (["--batch-size", "100000000"], 1, "batch_size=100000000 needs about"),
    ],
)
def test_what_cannot_be_aligned_is_told(
    tmp_path: Path, pair_options: list[str], data: list[str], changed: list[str], code: int, message: str
) -> None:
    sets = data if len(changed) > 1 else [word for i, word in enumerate(data) if changed[0] not in data[i - i % 2]]
    result = align(
        "--output", str(tmp_path / "out"), *pair_options, *sets, *SMALL, *(changed if len(changed) > 1 else ())
    )
    assert result.exit_code == code, result.output
    assert message in said(result).replace("│ ", "")


def test_a_draft_without_a_chat_template_is_refused(tmp_path: Path, pair_options: list[str], data: list[str]) -> None:
    base = tmp_path / "base"
    shutil.copytree(pair_options[3], base)
    (base / "chat_template.jinja").unlink()
    result = align("--output", str(tmp_path / "out"), *pair_options[:2], "--draft", str(base), *data)
    assert result.exit_code == 1
    assert "has no chat template, so it is no instruct model" in said(result)
