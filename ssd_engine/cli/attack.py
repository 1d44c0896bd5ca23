"""`ssd attack`: prompts optimised against the pair, for `ssd eval --attacked`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ssd_engine.cli.console import WorkProgress, starting, stdout
from ssd_engine.cli.pair_options import fetched, takes_pair
from ssd_engine.models.pair import PairSpec

NOT_USED = (
    "compile",
    "kv_cache_bytes",
    "max_batch_size",
    "max_waiting",
    "num_draft_tokens",
    "prefix_cache_bytes",
    "signals",
)
"""Options of decoding: the search reads prompts alone."""
_DATA: Any = {"rich_help_panel": "Data: .json, .jsonl or .csv file, or dataset id of the hub; repeatable"}


@takes_pair(without=NOT_USED)
def attack(
    *,
    pair: PairSpec,
    harmful: Annotated[list[str], typer.Option(help="Harmful requests: field goal, and target if there.", **_DATA)],
    output: Annotated[Path, typer.Option(help="File of JSON lines for the prompts.")] = Path("attacked.jsonl"),
    budget: Annotated[int, typer.Option(min=1, help="Prompts that are tried for each request.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows of each set.")] = None,
) -> None:
    """Search prompts that attack this very pair, with access to both models. For testing pairs of one's own.

    The default budget takes the default pair about a minute for each request on two cores. A call that was killed goes
    on behind the last prompt of the file.
    """
    with starting():
        from ssd_engine.evaluation.optimised_attack import AttackSettings, optimise

    fetched(pair)
    settings = AttackSettings(budget=budget, seed=seed)
    with WorkProgress() as report:
        cost = optimise(pair, harmful, output, settings, report, limit=limit)
    stdout.print(f"{output}: {cost}.\nMeasure what the pair withstands with: ssd eval --attacked {output} ...")
