"""`ssd align`: make a safe draft out of any small instruct model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ssd_engine.alignment.settings import AlignSettings
from ssd_engine.cli.console import WorkProgress, starting, stdout
from ssd_engine.cli.pair_options import described, fetched, takes_pair
from ssd_engine.errors import InvalidRequestError
from ssd_engine.models.pair import PairSpec

_DATA: Any = {"rich_help_panel": "Data: .json, .jsonl or .csv file, or dataset id of the hub; repeatable"}
NOT_USED = ("draft_adapter", "draft_system_prompt", "max_batch_size", "max_waiting", "num_draft_tokens", "signals")
"""Options of answers that SSD gives: here each model writes alone."""
_TRAINING: Any = {"rich_help_panel": "Training"}


def _default(name: str) -> Any:
    return AlignSettings.model_fields[name].default


def _setting(name: str) -> Any:
    return typer.Option(**described(str(AlignSettings.model_fields[name].description)), **_TRAINING)


@takes_pair(without=NOT_USED)
def align(
    *,
    pair: PairSpec,
    output: Annotated[Path, typer.Option(help="Folder for the adapter.")] = Path("safety-adapter"),
    harmful: Annotated[
        list[str] | None,
        typer.Option(help="Requests to refuse: field goal, and target (an opening) if there.", **_DATA),
    ] = None,
    ordinary: Annotated[list[str] | None, typer.Option(help="Ordinary requests: field prompt.", **_DATA)] = None,
    look_alikes: Annotated[
        list[str] | None,
        typer.Option(help="Harmless requests that sound harmful.", show_default="the package's", **_DATA),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from where it was killed.")] = False,
    merged: Annotated[Path | None, typer.Option(help="Folder for the draft with the adapter merged into it.")] = None,
    start: Annotated[
        str | None,
        typer.Option(
            help='Folder of an adapter to go on from; "preset" is the preset\'s own.', rich_help_panel="Models"
        ),
    ] = None,
    seed: Annotated[int, _setting("seed")] = _default("seed"),
    refusal: Annotated[str, _setting("refusal")] = _default("refusal"),
    stop: Annotated[str, _setting("stop")] = _default("stop"),
    recoveries: Annotated[int, _setting("recoveries")] = _default("recoveries"),
    beginnings: Annotated[int, _setting("beginnings")] = _default("beginnings"),
    starts: Annotated[int, _setting("starts")] = _default("starts"),
    disguises: Annotated[int, _setting("disguises")] = _default("disguises"),
    framed_share: Annotated[float, _setting("framed_share")] = _default("framed_share"),
    turned_share: Annotated[float, _setting("turned_share")] = _default("turned_share"),
    agents: Annotated[bool, _setting("agents")] = _default("agents"),
    own_requests: Annotated[bool, _setting("own_requests")] = _default("own_requests"),
    writer: Annotated[Literal["target", "draft"], _setting("writer")] = _default("writer"),
    continued_tokens: Annotated[int, _setting("continued_tokens")] = _default("continued_tokens"),
    answer_tokens: Annotated[int, _setting("answer_tokens")] = _default("answer_tokens"),
    validation_share: Annotated[float, _setting("validation_share")] = _default("validation_share"),
    epochs: Annotated[int, _setting("epochs")] = _default("epochs"),
    batch_size: Annotated[int, _setting("batch_size")] = _default("batch_size"),
    learning_rate: Annotated[float, _setting("learning_rate")] = _default("learning_rate"),
    lora_rank: Annotated[int, _setting("lora_rank")] = _default("lora_rank"),
    trained_layers: Annotated[int | None, _setting("trained_layers")] = _default("trained_layers"),
    checkpoint_steps: Annotated[int, _setting("checkpoint_steps")] = _default("checkpoint_steps"),
    patience: Annotated[int, _setting("patience")] = _default("patience"),
    probe_layer: Annotated[int | None, _setting("probe_layer")] = _default("probe_layer"),
    probe_examples: Annotated[int, _setting("probe_examples")] = _default("probe_examples"),
    false_alarm_rate: Annotated[float, _setting("false_alarm_rate")] = _default("false_alarm_rate"),
) -> None:
    """Train a safety adapter for the draft: deep refusals, and agreement with the target on all else."""
    given = locals()
    try:
        settings = AlignSettings(**{name: given[name] for name in AlignSettings.model_fields})
    except InvalidRequestError as error:
        raise typer.BadParameter(str(error)) from error
    with starting():
        from ssd_engine.alignment.align import Sources
        from ssd_engine.alignment.align import align as run
        from ssd_engine.models.resolve import resolve_spec

    sources = Sources(harmful=harmful or (), ordinary=ordinary or (), look_alikes=look_alikes or ())
    own_adapter = resolve_spec(fetched(pair)).draft_adapter
    if start == "preset" and own_adapter is None:
        raise typer.BadParameter("--start preset: the pair comes with no adapter; give a folder, or leave it out")
    start = own_adapter if start == "preset" else start
    with WorkProgress() as report:
        done = run(pair, sources, output, settings, report, start=start, resume=resume, merged=merged)
    stdout.print(
        f"{output}: validation loss {done.loss:.3f}, match rate {done.match_rate:.1%}, recovery rate "
        f"{done.recovery_rate:.1%}.\nMeasure the pair with: ssd eval --draft-adapter {output} --output report ..."
    )
