"""`ssd doctor`: what it finds of pairs that can run here, and of those that cannot."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from command_cases import LONG_ANSWER, offline, pair, ssd  # noqa: F401 (fixtures)
from conftest import ROOT, make_model
from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast

from ssd_engine.doctor.installation import installed_packages
from ssd_engine.models.checkpoints import BASE_RECORD

Altered = Callable[[str], tuple[Path, list[str]]]


@pytest.fixture
def altered(pair: list[str], tmp_path: Path) -> Altered:
    """A copy of one side of the pair, to be spoilt, and the options of the pair with it."""

    def copied(side: str) -> tuple[Path, list[str]]:
        options = list(pair)
        place = options.index(f"--{side}") + 1
        folder = tmp_path / f"altered-{side}"
        shutil.copytree(options[place], folder)
        options[place] = str(folder)
        return folder, options

    return copied


def refused(*arguments: str) -> str:
    """What is said of a pair that cannot run."""
    result = ssd("doctor", *arguments)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    assert "can run here." not in result.stdout
    return " ".join(result.stdout.partition("This pair cannot run here:")[2].split())


def test_a_pair_that_can_run_is_told_of_in_80_columns(pair: list[str]) -> None:
    command = [sys.executable, "-c", "from ssd_engine.cli import main; main()", "doctor", *pair]
    environment = {**os.environ, "COLUMNS": "80", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == "", "nothing of progress, since nobody watches"
    assert max(map(len, done.stdout.splitlines())) <= 80
    said = " ".join(done.stdout.split())
    assert done.stdout.endswith("This pair can run here.\n")
    assert re.search(r"vocabulary +one, of 4\d\d tokens", said)
    assert re.search(r"target +target; qwen2, 0.00 billion parameters; 0.\d MB as float32", said)
    assert "chat template with tools, called as hermes models do" in said
    assert f"{2 * LONG_ANSWER:,} tokens, prompt and answer together" in said
    assert re.search(r"target alone at most \d+\.\d tokens/s ssd at most \d+\.\d tokens/s", said)
    assert "none: the pair is as safe as this draft" in said


def test_json_says_the_same(pair: list[str]) -> None:
    result = ssd("doctor", *pair, "--json", "--quantization", "int8", "--num-draft-tokens", "2")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["can_run"] is True
    assert found["problems"] == []
    assert {"name": "torch", "purpose": "pairs in this process"}.items() <= found["packages"][0].items()
    assert found["hardware"]["memory_total"] == psutil.virtual_memory().total
    assert found["pair"]["context_length"] == 2 * LONG_ANSWER
    target, speed = found["pair"]["target"], found["speed"]
    assert target["form"] == "int8"
    assert target["bytes_read"] < target["bytes_held"] < 4 * target["parameters"], "int8 is a quarter of float32"
    assert speed["num_draft_tokens"] == 2
    assert speed["target_tokens_per_second"] == pytest.approx(speed["bytes_per_second"] / target["bytes_read"])


def test_a_pair_that_is_not_here_is_told_with_what_it_takes_to_fetch_it(tmp_path: Path) -> None:
    result = ssd("doctor")
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "to be fetched at first use, 1.1 GB" in said
    assert "before 1.6 GB are fetched" in said
    assert "the package's own for qwen2.5-coder-0.5b-safe" in said
    assert not (tmp_path / "cache").exists(), "nothing is fetched, and nothing is made"


def test_a_pair_that_is_nowhere_cannot_run() -> None:
    said = refused("--target", "org/large", "--draft", "/nowhere/small")
    assert "org/large is not on this machine, and cannot be fetched: not asked, because HF_HUB_OFFLINE is set" in said
    assert "'/nowhere/small' does not exist; give a folder" in said


def test_two_vocabularies(altered: Altered) -> None:
    folder, options = altered("draft")
    file = folder / "tokenizer.json"
    known = json.loads(file.read_text())
    vocabulary = known["model"]["vocab"]
    vocabulary["fox"] = vocabulary.pop(next(iter(sorted(vocabulary, key=vocabulary.get, reverse=True))))
    known["model"]["merges"] = []
    file.write_text(json.dumps(known))
    result = ssd("doctor", *options)
    assert result.exit_code == 0, result.output
    assert re.search(r"two: 3\d\d of the target's \d+ tokens are among the draft's", " ".join(result.stdout.split()))
    known["model"]["vocab"] = {chr(0x400 + token_id): token_id for token_id in vocabulary.values()}
    file.write_text(json.dumps(known))
    assert "changes text: 7 of 7 samples do not come back" in refused(*options)


def test_a_missing_chat_template(altered: Altered) -> None:
    folder, options = altered("draft")
    (folder / "chat_template.jinja").unlink()
    assert "altered-draft has no chat template, so it cannot read messages" in refused(*options)


def test_weights_that_do_not_fit(altered: Altered) -> None:
    folder, options = altered("target")
    with (folder / "more.safetensors").open("wb") as file:
        file.truncate(2 * psutil.virtual_memory().total)  # a hole, which takes nothing on the disk
    assert re.search(r"needs at least \d+\.\d\d GB of memory, and \d+\.\d\d GB are available", refused(*options))


def test_caches_that_do_not_fit(pair: list[str]) -> None:
    assert "kv_cache_bytes=1000000000000000 asks for" in refused(*pair, "--kv-cache-bytes", "1000000000000000")


def test_no_weights_or_pickled_ones(altered: Altered) -> None:
    folder, options = altered("target")
    (folder / "model.safetensors").unlink()
    assert "holds no *.safetensors" in refused(*options)
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "holds pickled weights (pytorch_model.bin)" in refused(*options)


def test_a_family_that_cannot_be_run(altered: Altered) -> None:
    folder, options = altered("draft")
    BloomForCausalLM(BloomConfig(vocab_size=405, hidden_size=16, n_layer=1, n_head=2)).save_pretrained(folder)
    assert "model type 'bloom' computes attention in a way" in refused(*options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "nosuch"], "device='nosuch' cannot be used"),
        (["--dtype", "float7"], "dtype='float7' is unknown"),
        (["--signal", "refusal_mass=0.5"], "signals.refusal_mass: the draft has no signals.safetensors"),
        (["--draft-adapter", "./nowhere"], "draft_adapter='./nowhere' does not exist"),
    ],
)
def test_options_that_cannot_be(pair: list[str], options: list[str], message: str) -> None:
    assert message in refused(*pair, *options)


def test_an_adapter_of_another_model(pair: list[str], tmp_path: Path) -> None:
    (tmp_path / BASE_RECORD).write_text(json.dumps({"name": "another", "fingerprint": "0" * 16}))
    assert "was made for another, and this draft has other weights" in refused(*pair, "--draft-adapter", str(tmp_path))


def test_what_is_missing_names_the_extra_that_brings_it() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package in installed_packages():
        named = re.search(r"\[([\w-]+)\]", package.install)
        if named:
            assert any(line.startswith(f"{package.name}>=") for line in extras[named[1]]), package


def test_bigger_vocabularies_of_one_family_are_one(altered: Altered, tokenizer: PreTrainedTokenizerFast) -> None:
    """Embeddings may be padded beyond the tokens that there are."""
    folder, options = altered("draft")
    make_model(2, len(tokenizer) + 60, context=2 * LONG_ANSWER).save_pretrained(folder)
    assert ssd("doctor", *options).exit_code == 0
