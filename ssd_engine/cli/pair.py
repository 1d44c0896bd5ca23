"""`ssd pair`: whether a draft can guard a target."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from ssd_engine.cli.console import printable, stderr, stdout
from ssd_engine.cli.findings import Rows, pair_rows, print_table
from ssd_engine.cli.pair_options import Quantization, silence_transformers
from ssd_engine.models.pair import PairSpec
from ssd_engine.models.presets import SAFE_DRAFTS

if TYPE_CHECKING:
    from ssd_engine.doctor.trial import Trial

_LOW_MATCH_RATE = 0.6
"""Below it bins of ordinary answers fall under the paper's threshold."""
_LOW_SHARED_TEXT = 0.9
_HIGH_UNION_SHARE = 0.04

app = typer.Typer(help="Pairs of your own: whether a draft can guard a target.", no_args_is_help=True)


@app.callback()
def _pairs() -> None:
    pass


@app.command()
def check(
    target: Annotated[str, typer.Argument(help="Target: hub id, folder or GGUF file.")],
    draft: Annotated[
        str, typer.Argument(help=f"Draft: the same, or a safe draft of the package ({', '.join(SAFE_DRAFTS)}).")
    ] = next(iter(SAFE_DRAFTS)),
    *,
    draft_adapter: Annotated[
        str | None, typer.Option(help="PEFT adapter to merge into the draft; 'none' for none.")
    ] = None,
    quantization: Annotated[Quantization | None, typer.Option(help="As for ssd chat.")] = None,
    prompts: Annotated[
        int, typer.Option(min=0, max=8, help="Ordinary prompts to answer; 0: the weights are not read.")
    ] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Tell whether a draft can guard a target, and what to expect.

    Compares their vocabularies, memory and templates, and answers a few ordinary prompts. The exit code is 1 where the
    pair cannot work.
    """
    silence_transformers()
    from ssd_engine.doctor.pair import pair_needs
    from ssd_engine.doctor.trial import Trial
    from ssd_engine.pair_engine import SSDEngine

    spec = PairSpec(target=target, draft=draft, draft_adapter=draft_adapter, quantization=quantization)
    with stderr.status("Looking at the pair"):
        needs = pair_needs(spec)
    trial = None
    if not needs.problems and prompts:
        with stderr.status("Answering ordinary prompts"), SSDEngine.from_spec(spec) as engine:
            trial = Trial.of(engine, prompts)
    if as_json:
        found = {"can_work": not needs.problems, "pair": asdict(needs), "trial": trial and asdict(trial)}
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print_table(needs.title, pair_rows(needs))
        if trial is not None:
            print_table(f"{trial.prompts} ordinary prompts", _trial_rows(trial))
        shared = None if needs.vocabularies is None else needs.vocabularies.shared_text
        for line in needs.problems or _expectations(trial, shared):
            stdout.print(Text(f"- {printable(line)}"))
        verdict = "This pair cannot work." if needs.problems else "This pair can work."
        stdout.print(Text(verdict, "bold red" if needs.problems else "bold green"))
    if needs.problems:
        raise typer.Exit(1)


def _trial_rows(trial: Trial) -> Rows:
    yield "match rate", f"{trial.match_rate:.2f}"
    yield "under Union", f"{trial.union_share:.1%} of the tokens"
    if trial.bridge_mass is not None:
        yield "bridge mass", f"{trial.bridge_mass:.3f} of the draft's probability is on tokens that the target lacks"
    speeds = trial.tokens_per_second, trial.target_tokens_per_second
    if None in speeds:
        yield "tokens/s", "not known: the answers ended in their first round"
    else:
        yield "tokens/s", "{:.1f}, the target alone {:.1f}; decoding".format(*speeds)


def _expectations(trial: Trial | None, shared_text: float | None) -> list[str]:
    """What to expect, in sentences."""
    said = []
    if shared_text is not None and shared_text < _LOW_SHARED_TEXT:
        said.append(
            f"{1 - shared_text:.0%} of the target's tokens in ordinary text are none of the draft's: each counts as a "
            "mismatch, so use signals rather than the match ratio, or a lower match_threshold."
        )
    if trial is not None:
        if trial.match_rate < _LOW_MATCH_RATE:
            said.append(
                f"With a match rate of {trial.match_rate:.2f} the match ratio says little of risk: lower "
                "match_threshold below it, and let signals decide."
            )
        if trial.union_share > _HIGH_UNION_SHARE:
            said.append(
                f"{trial.union_share:.0%} of ordinary tokens are chosen under Union, in the draft's words: lower "
                "match_threshold or raise the signals' thresholds."
            )
        if trial.tokens_per_second is not None and trial.target_tokens_per_second is not None:
            ratio = trial.tokens_per_second / trial.target_tokens_per_second
            said.append(f"Safety makes it {ratio:.2f} times as fast as the target alone here.")
    said.append("How safe the pair is, ssd eval measures.")
    return said
