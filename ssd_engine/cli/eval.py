"""`ssd eval`: what the pair withstands, and what that costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.markdown import Markdown

from ssd_engine.cli.console import WorkProgress, starting, stdout
from ssd_engine.cli.pair_options import fetched, takes_pair
from ssd_engine.errors import InvalidRequestError
from ssd_engine.evaluation.settings import FORM_NAMES, PREFILL, Contestant, EvalSettings
from ssd_engine.models.pair import PairSpec

_DATA: Any = {"rich_help_panel": "Data: .json, .jsonl or .csv file, or dataset id of the hub; repeatable"}
Paths = list[str] | None


@takes_pair(without=("max_batch_size", "max_waiting"))
def evaluate(
    *,
    pair: PairSpec,
    output: Annotated[Path, typer.Option(help="Folder for answers, report and plots.")] = Path("safety-report"),
    harmful: Annotated[Paths, typer.Option(help="Harmful requests: field goal, and target if there.", **_DATA)] = None,
    attacked: Annotated[Paths, typer.Option(help="Prompts made by an attack: goal and prompt.", **_DATA)] = None,
    over_refusal: Annotated[Paths, typer.Option(help="Harmless requests that look harmful: prompt.", **_DATA)] = None,
    twins: Annotated[
        Paths, typer.Option(help="Harmless requests asked in the attacks' forms: prompt, and target if there.", **_DATA)
    ] = None,
    utility: Annotated[Paths, typer.Option(help="Problems with a number for an answer: prompt, goal.", **_DATA)] = None,
    ordinary: Annotated[Paths, typer.Option(help="Ordinary requests: prompt.", **_DATA)] = None,
    contestant: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(get_args(Contestant))}; repeatable, else all.")
    ] = None,
    form: Annotated[
        list[str] | None, typer.Option("--form", "--template", help=f"{', '.join(FORM_NAMES)}; repeatable, else all.")
    ] = None,
    prefill: Annotated[
        list[int] | None, typer.Option(help="Tokens of a compliant answer that the form prefill gives; repeatable.")
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="Beside phrases: rubric (the target with a rubric), rubric:<preset or model>, a guard model's hub id, "
            "or chat:<provider>:<model>; repeatable."
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Answers judged by reading: key and digest of a row of answers.jsonl, and label."),
    ] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Try other settings of ssd and recommend some.")] = False,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="A look of minutes: short answers of ssd to 16 rows of each set, plainly and with 10, 20 and 40 given "
            "tokens. Options that are given hold instead.",
        ),
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows of each set, for a quick look.")] = None,
) -> None:
    """Attack the pair, and measure what its safety costs. For testing pairs of one's own.

    Without a set, it asks small ones of the package. All contestants and forms together take hours on two cores:
    choose some, or take --limit or --quick. Goes on where it was killed, from the answers in the folder.
    """
    with starting():
        from ssd_engine.evaluation.agreement import read_labels
        from ssd_engine.evaluation.glance import glance
        from ssd_engine.evaluation.judges import load_judges
        from ssd_engine.evaluation.safety import EvalSources
        from ssd_engine.evaluation.safety import evaluate as run
        from ssd_engine.models.resolve import resolve_spec

    if form and prefill and PREFILL not in form:
        form = [PREFILL, *form]
    chosen: dict[str, Any] = {"contestants": contestant, "forms": form, "prefills": prefill}
    chosen = {name: tuple(values) for name, values in chosen.items() if values}
    if limit is not None:
        chosen["limit"] = limit
    try:
        settings = EvalSettings.quick(**chosen) if quick else EvalSettings(**chosen)
    except InvalidRequestError as error:
        raise typer.BadParameter(str(error)) from error
    sources = EvalSources(
        harmful=harmful or (),
        attacked=attacked or (),
        over_refusal=over_refusal or (),
        twins=twins or (),
        utility=utility or (),
        ordinary=ordinary or (),
    )
    if quick and not any(vars(sources).values()):
        sources = replace(EvalSources.own(), utility=())  # problems take hundreds of tokens each
    pair = resolve_spec(fetched(pair))
    read = None if labels is None else read_labels(labels)
    judges = load_judges(judge or (), str(pair.target), pair.quantizations[0])
    with WorkProgress() as report:
        done = run(pair, sources, output, settings, report, judges=judges, labels=read, sweep=sweep)
    report_text = glance(done.report) if quick else (output / "report.md").read_text(encoding="utf-8")
    stdout.print(Markdown(report_text))
    stdout.print("Written: " + ", ".join(str(path) for path in done.files))
