"""`ssd doctor`: what is installed, what this machine can run, and what a pair needs."""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from ssd_engine.cli.console import printable, stderr, stdout
from ssd_engine.cli.findings import Rows, gigabytes, pair_rows, print_table
from ssd_engine.cli.pair_options import silence_transformers, takes_pair
from ssd_engine.doctor.checkup import Checkup, SpeedBound, check_up
from ssd_engine.doctor.installation import Package
from ssd_engine.models.pair import PairSpec

if TYPE_CHECKING:
    from ssd_engine.doctor.hardware import Hardware
    from ssd_engine.doctor.pair import PairNeeds


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
    print_table("Installed", _installed(found.packages))
    if found.hardware is not None:
        print_table("This machine", _machine(found.hardware))
    if found.pair is not None:
        print_table(found.pair.title, pair_rows(found.pair))
    if found.can_run:
        print_table("Speed", _speed(found.speed))
        stdout.print(_verdict(found.pair))
        return
    stdout.print(Text("This pair cannot run here:", "bold red"))
    for problem in found.problems:
        stdout.print(Text(f"- {printable(problem)}"))


def _installed(packages: Iterable[Package]) -> Rows:
    yield "ssd-integrations", f"{version('ssd-integrations')}, on Python {platform.python_version()}"
    for package in packages:
        missing = f"not installed ({package.purpose}): {package.install}"
        yield package.name, package.version or missing


def _machine(hardware: Hardware) -> Rows:
    yield "processor", hardware.processor
    yield "cores", f"{hardware.cores}, of which torch uses {hardware.threads}"
    yield "instructions", ", ".join(hardware.instructions) or "none of those that matter here"
    yield "memory", f"{gigabytes(hardware.memory_free)} of {gigabytes(hardware.memory_total)} free"
    for gpu in hardware.accelerators:
        yield "GPU", f"{gpu.name}, {gigabytes(gpu.memory_free)} of {gigabytes(gpu.memory_total)} free"
    if not hardware.accelerators:
        yield "GPU", "none that torch sees"
    yield "16-bit weights", f"held as {hardware.weights}"
    if not hardware.accelerators:
        yield "int8", "half the memory, more tokens/s: the default pair's form here; for others --quantization int8"


def _speed(speed: SpeedBound | None) -> Rows:
    if speed is not None:
        yield "memory", f"{gigabytes(int(speed.bytes_per_second))}/s read, measured just now"
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
            f"Nothing stands in this pair's way here, as far as can be told before {gigabytes(to_fetch)} are fetched."
        )
        return Text(said, "bold")
    return Text("This pair can run here.", "bold green")
