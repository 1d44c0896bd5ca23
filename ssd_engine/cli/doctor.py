"""`ssd doctor`: what is installed, what this machine can run, and what a pair needs."""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from ssd_engine.cli.console import printable, stderr, stdout
from ssd_engine.cli.pair_options import silence_transformers, takes_pair
from ssd_engine.doctor.checkup import Checkup, SpeedBound, check_up
from ssd_engine.doctor.installation import Package
from ssd_engine.models.pair import PairSpec

if TYPE_CHECKING:
    from ssd_engine.doctor.hardware import Hardware
    from ssd_engine.doctor.pair import ModelNeeds, PairNeeds
    from ssd_engine.doctor.safety import DraftSafety

Rows = Iterable[tuple[str, str]]


@takes_pair()
def doctor(
    *,
    pair: PairSpec,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Tell what is installed, what this machine can run, what the pair needs, and how fast it can be at most.

    Reads no weights and downloads nothing. The exit code is 1 where the pair cannot run here.
    """
    with stderr.status("Looking at this machine and the pair"):
        with contextlib.suppress(ImportError):  # it may be what is missing
            silence_transformers()
        found = check_up(pair)
    if as_json:
        own = {"ssd-integrations": version("ssd-integrations"), "python": platform.python_version()}
        typer.echo(json.dumps({"can_run": found.can_run, **own, **asdict(found)}, indent=2, ensure_ascii=False))
    else:
        _print(found)
    if not found.can_run:
        raise typer.Exit(1)


def _print(found: Checkup) -> None:
    _print_table("Installed", _installed(found.packages))
    if found.hardware is not None:
        _print_table("This machine", _machine(found.hardware))
    if found.pair is not None:
        _print_table(found.pair.title, _pair(found.pair))
    if found.can_run:
        _print_table("Speed", _speed(found.speed))
        stdout.print(_verdict(found.pair))
        return
    stdout.print(Text("This pair cannot run here:", "bold red"))
    for problem in found.problems:
        stdout.print(Text(f"- {printable(problem)}"))


def _print_table(title: str, rows: Rows) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, finding in rows:
        table.add_row(name, Text(printable(finding)))
    stdout.print(Text(printable(title), "bold"))
    stdout.print(table)
    stdout.print()


def _installed(packages: Iterable[Package]) -> Rows:
    yield "ssd-integrations", f"{version('ssd-integrations')}, on Python {platform.python_version()}"
    for package in packages:
        missing = f"not installed ({package.purpose}): {package.install}"
        yield package.name, package.version or missing


def _machine(hardware: Hardware) -> Rows:
    yield "processor", hardware.processor
    yield "cores", f"{hardware.cores}, of which torch uses {hardware.threads}"
    yield "instructions", ", ".join(hardware.instructions) or "none of those that matter here"
    yield "memory", f"{_gigabytes(hardware.memory_free)} of {_gigabytes(hardware.memory_total)} free"
    for gpu in hardware.accelerators:
        yield "GPU", f"{gpu.name}, {_gigabytes(gpu.memory_free)} of {_gigabytes(gpu.memory_total)} free"
    if not hardware.accelerators:
        yield "GPU", "none that torch sees"
    yield "16-bit weights", f"held as {hardware.weights}"
    if not hardware.accelerators:
        yield "int8", "half the memory, more tokens/s: the default pair's form here; for others --quantization int8"


def _pair(pair: PairNeeds) -> Rows:
    for role, model in (("target", pair.target), ("draft", pair.draft)):
        yield role, "; ".join(_model(model))
    if pair.safety is not None:
        yield from _safety(pair.safety)
    if pair.shared_tokens is not None:
        yield "vocabulary", f"one, of {pair.shared_tokens:,} tokens" if pair.shared_tokens else "two different ones"
    if pair.target.has_chat_template is not None:
        yield "messages", _messages(pair)
    if pair.context_length is not None:
        yield "context", f"{pair.context_length:,} tokens, prompt and answer together"
    yield from _memory(pair)


def _model(model: ModelNeeds) -> Iterable[str]:
    yield model.name
    if model.parameters is not None:
        yield f"{model.model_type}, {model.parameters / 1e9:.2f} billion parameters"
    if model.state == "to be fetched":
        yield f"to be fetched at first use, {_gigabytes(model.fetched_bytes)}"
    elif model.state != "here":
        yield f"{model.state} at first use" if model.state == "to be converted" else "not here"
    if model.bytes_held is not None:
        yield f"{_gigabytes(model.bytes_held)} as {model.form}"


def _safety(safety: DraftSafety) -> Rows:
    adapter = safety.adapter
    if adapter is None:
        yield "adapter", "none: the pair is as safe as this draft (ssd align makes one)"
    else:
        folder = Path(adapter)
        yield "adapter", f"the package's own for {folder.name}" if folder.parent.name == "adapters" else adapter
    readable = ", ".join(safety.signals) or "not known before the draft is here"
    yield "signals", f"{readable}; used: {', '.join(safety.used_signals) or 'none'}"


def _messages(pair: PairNeeds) -> str:
    without = [model.name for model in (pair.target, pair.draft) if model.has_chat_template is False]
    if without:
        return f"no chat template: {', '.join(without)}"
    if pair.target.tool_format is None:
        return "chat template without tools"
    return f"chat template with tools, called as {pair.target.tool_format} models do"


def _memory(pair: PairNeeds) -> Rows:
    if pair.memory_free is None or pair.target.bytes_held is None or pair.draft.bytes_held is None:
        return
    weights = pair.target.bytes_held + pair.draft.bytes_held
    yield "memory", f"{_gigabytes(weights)} for weights; {_gigabytes(pair.memory_free)} free on {pair.device}"
    if pair.cache_bytes is not None:
        yield (
            "",
            f"{_gigabytes(pair.cache_bytes)} for key-value caches of {pair.cache_positions:,} tokens, as they fill",
        )


def _speed(speed: SpeedBound | None) -> Rows:
    if speed is not None:
        yield "memory", f"{_gigabytes(int(speed.bytes_per_second))}/s read, measured just now"
        yield "target alone", f"at most {speed.target_tokens_per_second:.1f} tokens/s"
        yield (
            "ssd",
            f"at most {speed.ssd_tokens_per_second:.1f} tokens/s, with all of {speed.num_draft_tokens} drafted tokens "
            "a round accepted",
        )
        yield "", "by what a token reads of the weights; one request, and what else runs here counts"
    yield "as it is", "ssd bench measures it"


def _verdict(pair: PairNeeds | None) -> Text:
    to_fetch = 0 if pair is None else pair.target.fetched_bytes + pair.draft.fetched_bytes
    if to_fetch:
        said = (
            f"Nothing stands in this pair's way here, as far as can be told before {_gigabytes(to_fetch)} are fetched."
        )
        return Text(said, "bold")
    return Text("This pair can run here.", "bold green")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"
