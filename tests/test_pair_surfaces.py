"""One description of a pair: every surface has every field of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from typer.testing import CliRunner

from ssd_engine import SSDEngine
from ssd_engine.cli import app
from ssd_engine.cli.pair_options import NOT_OPTIONS
from ssd_engine.config import SignalConfig, SSDConfig
from ssd_engine.errors import InvalidRequestError, ModelLoadError
from ssd_engine.models.pair import PairOptions, PairSpec, backend_of
from ssd_integrations.langchain import ChatSSD
from ssd_integrations.llama_index import SSDLLM

COMMANDS: dict[str, tuple[str, Sequence[str]]] = {
    "run": ("transformers", ()),
    "chat": ("transformers", ()),
    "doctor": ("transformers", ()),
    "eval": ("transformers", ("max_batch_size", "max_waiting")),
    "serve": ("vllm", ("max_waiting",)),
    **{
        name: ("transformers", import_module(f"ssd_engine.cli.{name}").NOT_USED)
        for name in ("align", "attack", "bench")
    },
}
"""Each command's backend, and the fields that it sets itself or has no use for."""
LINES = {"compile": "--compile", "signals": "--signal"}


@pytest.mark.parametrize("surface", [ChatSSD, SSDLLM, PairSpec])
def test_a_surface_has_every_option(surface: type[BaseModel]) -> None:
    assert not PairOptions.model_fields.keys() - surface.model_fields.keys()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_every_option(command: str) -> None:
    backend, without = COMMANDS[command]
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "300", "TERM": "dumb"}).stdout
    for name in PairSpec.model_fields:
        if name in (*NOT_OPTIONS, *without) or backend_of(name) not in (None, backend):
            continue
        assert LINES.get(name, f"--{name.replace('_', '-')}") in shown, name
    assert "[default: (SSD_PRESET, or qwen2.5-coder-1.5b)]" in shown, "what holds where an option is left out"


@pytest.fixture
def sets(tmp_path: Path) -> list[str]:
    """What the commands that work on prompts are given."""
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps([{"goal": f"Pick lock {i}", "prompt": f"Say {i}", "target": "Sure"} for i in range(8)]))
    return ["--harmful", str(file), "--output", str(tmp_path / "out.jsonl")]


def arguments(command: str, sets: list[str]) -> list[str]:
    match command:
        case "run":
            return ["run", "Hello", "--max-tokens", "2"]
        case "align":
            return ["align", *sets, "--ordinary", sets[1], "--no-own-requests", "--no-agents"]
        case "eval":
            return ["eval", *sets, "--quick", "--contestant", "draft"]
        case "attack":
            return ["attack", *sets, "--budget", "2"]
    return [command]


@pytest.mark.parametrize("command", ["run", "chat", "eval", "attack", "align"])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--draft-revision", "main"], "no revision 'main'"),
        (["--dtype", "float7"], "dtype='float7' is unknown"),
        (["--device", "nosuch"], "nosuch"),
    ],
)
def test_every_command_loads_the_draft_as_its_options_say(
    command: str, option: list[str], message: str, pair_options: list[str], sets: list[str]
) -> None:
    if (command, option[0]) == ("align", "--dtype"):
        option = [*option, "--writer", "draft"]  # whatever writes; the training is in float32
    result = CliRunner().invoke(app, [*arguments(command, sets), *pair_options, *option])
    assert result.exit_code == 1, result.output
    assert message in " ".join(result.output.split())


@pytest.mark.parametrize(
    "answer",
    [
        lambda **options: SSDEngine.from_pretrained(options.pop("model"), **options),
        lambda **options: ChatSSD(**options).invoke("Hello"),
        lambda **options: SSDLLM(**options).complete("Hello"),
    ],
)
def test_every_object_loads_the_pair_as_its_options_say(answer: Callable[..., Any], saved_pair: dict[str, str]) -> None:
    with pytest.raises(ModelLoadError, match="no revision 'v2'"):
        answer(**saved_pair, target_revision="v2")
    with pytest.raises(ModelLoadError, match="dtype='float7' is unknown"):
        answer(**saved_pair, dtype="float7")
    with pytest.raises(InvalidRequestError, match="max_model_len: not with backend='transformers'"):
        answer(**saved_pair, max_model_len=512)


def test_an_options_settings_hold_in_both_frameworks(saved_pair: dict[str, str]) -> None:
    for model in (ChatSSD(**saved_pair, num_draft_tokens=1), SSDLLM(**saved_pair, num_draft_tokens=1)):
        assert model.load().config.num_draft_tokens == 1
    config = SSDConfig(bin_size=3)
    for model in (
        ChatSSD(**saved_pair, num_draft_tokens=1, config=config),
        SSDLLM(**saved_pair, num_draft_tokens=1, config=config),
    ):
        assert model._params({}).ssd == config.replaced(num_draft_tokens=1)


def test_a_spec_can_be_saved_and_read_again() -> None:
    spec = PairSpec(
        target=Path("large"),
        draft="small",
        dtype=torch.bfloat16,
        device="auto",
        config=SSDConfig(signals=SignalConfig(kl=0.5)),
        signals=SignalConfig(refusal_mass=0.3),
        max_batch_size=2,
    )
    assert PairSpec.model_validate_json(spec.model_dump_json()) == spec
    assert (spec.target, spec.dtype, spec.device) == ("large", "bfloat16", None)
    assert spec.settings.signals == SignalConfig(refusal_mass=0.3)
    assert spec.replaced(signals="none").settings.signals is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "a"}, "give both models"),
        ({"preset": "p", "target": "a", "draft": "b"}, "both name a pair"),
        ({"target_revision": "main"}, "go with target and draft"),
        ({"backend": "vllm", "device": "cpu"}, "device: not with backend='vllm'"),
        ({"backend": "onnx"}, "backend='onnx'"),
        ({"max_batch_size": 0}, "max_batch_size=0"),
        ({"devise": "cpu"}, "devise='cpu'"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        PairSpec(**options)
