"""`ssd eval`: what the pair withstands, and what that costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.markdown import Markdown

from ssd_engine.cli import engine_options
from ssd_engine.cli.console import WorkProgress, stdout
from ssd_engine.cli.engine_options import EngineOptions
from ssd_engine.errors import InvalidRequestError
from ssd_engine.evaluation.settings import Contestant, EvalSettings

_DATA: Any = {"rich_help_panel": "Data: .json, .jsonl or .csv file, or dataset id of the hub; repeatable"}
Paths = list[str] | None


def evaluate(
    *,
    output: Annotated[Path, typer.Option(help="Folder for answers, report and plots.")] = Path("safety-report"),
    harmful: Annotated[Paths, typer.Option(help="Harmful requests: field goal, and target if there.", **_DATA)] = None,
    attacked: Annotated[Paths, typer.Option(help="Prompts made by an attack: goal and prompt.", **_DATA)] = None,
    over_refusal: Annotated[Paths, typer.Option(help="Harmless requests that look harmful: prompt.", **_DATA)] = None,
    utility: Annotated[Paths, typer.Option(help="Problems with a number for an answer: prompt, goal.", **_DATA)] = None,
    ordinary: Annotated[Paths, typer.Option(help="Ordinary requests: prompt.", **_DATA)] = None,
    contestant: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(get_args(Contestant))}; repeatable, else all.")
    ] = None,
    prefill: Annotated[list[int] | None, typer.Option(help="Tokens of a compliant answer; repeatable.")] = None,
    template: Annotated[list[str] | None, typer.Option(help="A jailbreak template; repeatable, else all.")] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(help="Beside phrases: hub id of a guard model, or chat:<provider>:<model>; repeatable."),
    ] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Try other settings of ssd and recommend some.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows of each set, for a quick look.")] = None,
    preset: engine_options.PresetOption = None,
    target: engine_options.TargetOption = None,
    draft: engine_options.DraftOption = None,
    draft_adapter: engine_options.DraftAdapterOption = None,
    num_draft_tokens: engine_options.NumDraftTokensOption = None,
    quantization: Annotated[
        engine_options.Quantization | None, typer.Option(help="Of both models.", rich_help_panel="Models")
    ] = None,
) -> None:
    """Attack the pair, and measure what its safety costs. For testing pairs of one's own.

    Without a set, it asks small ones of the package. Goes on where it was killed, from the answers in the folder.
    """
    from ssd_engine.evaluation.judges import load_judges
    from ssd_engine.evaluation.safety import EvalSources
    from ssd_engine.evaluation.safety import evaluate as run

    chosen = {"contestants": contestant, "prefills": prefill, "templates": template}
    try:
        settings = EvalSettings(limit=limit, **{name: tuple(values) for name, values in chosen.items() if values})
    except InvalidRequestError as error:
        raise typer.BadParameter(str(error)) from error
    sources = EvalSources(
        harmful=harmful or (),
        attacked=attacked or (),
        over_refusal=over_refusal or (),
        utility=utility or (),
        ordinary=ordinary or (),
    )
    options = EngineOptions(
        preset=preset, target=target, draft=draft, draft_adapter=draft_adapter, num_draft_tokens=num_draft_tokens
    )
    pair = options.evaluated_pair(quantization)
    with WorkProgress() as report:
        done = run(pair, sources, output, settings, report, judges=load_judges(judge or ()), sweep=sweep)
    stdout.print(Markdown((output / "report.md").read_text(encoding="utf-8")))
    stdout.print("Written: " + ", ".join(str(path) for path in done.files))
