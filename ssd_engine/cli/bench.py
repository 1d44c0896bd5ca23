"""`ssd bench`: how fast the pair is, beside transformers, in one run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ssd_engine.cli.console import starting, stderr, stdout
from ssd_engine.cli.pair_options import fetched, takes_pair
from ssd_engine.config import Backend
from ssd_engine.evaluation.workloads import WORKLOADS
from ssd_engine.models.pair import PairSpec

if TYPE_CHECKING:
    from ssd_engine.evaluation.speed_report import Report, Row


MAX_TOKENS = 96
QUICK_TOKENS, QUICK_PROMPTS = 32, 3
NOT_USED = (
    "device",
    "draft_system_prompt",
    "dtype",
    "kv_cache_bytes",
    "max_batch_size",
    "max_waiting",
    "prefix_cache_bytes",
    "quantization",
    "target_quantization",
    "draft_quantization",
)
"""Options that the rows of the table are made of, and those that transformers' `generate` has not."""


@takes_pair(without=NOT_USED)
def bench(
    *,
    pair: PairSpec,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="In a few minutes: ssd beside its target alone and llama.cpp, as four ratios."),
    ] = False,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens in each answer.", show_default=f"{MAX_TOKENS}; {QUICK_TOKENS} with --quick"),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Use only the first prompts.", show_default=f"all; {QUICK_PROMPTS} with --quick"),
    ] = None,
    workload: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(WORKLOADS)}; repeatable.", show_default="chat; with --quick edit too"),
    ] = None,
    requests: Annotated[list[int] | None, typer.Option(min=1, max=16, help="Requests at once; repeatable.")] = None,
    backend: Annotated[
        Backend, typer.Option(help="vllm: vLLM alone, its speculation, and SSD on it.")
    ] = "transformers",
    vllm_dtype: Annotated[str, typer.Option(help="Type of vLLM's weights: auto, float32, bfloat16.")] = "auto",
    context: Annotated[list[int] | None, typer.Option(min=64, help="Prompt length to try; repeatable.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Measure this row of the table alone, llama.cpp's two among them; repeatable."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the table into this file (PNG, SVG or PDF).")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the whole report to this file, as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of a table.")] = False,
) -> None:
    """Measure the pair against transformers' generate and assisted generation, or on vLLM against vLLM's own."""
    with starting():
        from ssd_engine.evaluation import speed

    fetched(pair)
    with _progress() as progress:
        task = progress.add_task("")

        def show(step: str, done: int, total: int) -> None:
            progress.update(task, description=step, completed=done, total=total)
            if not stderr.is_terminal:
                stderr.print(f"[{done + 1}/{total}] {step}", markup=False)

        report = speed.run(
            pair,
            workloads=workload or (("chat", "edit") if quick else ("chat",)),
            limit=limit or (QUICK_PROMPTS if quick else None),
            requests=requests or [1],
            contexts=context or [],
            names=only or (speed.quick_names(pair) if quick else []),
            backend=backend,
            vllm_dtype=vllm_dtype,
            max_new_tokens=max_tokens or (QUICK_TOKENS if quick else MAX_TOKENS),
            is_quick=quick,
            progress=show,
        )
    document = json.dumps(report.to_json(), indent=2, ensure_ascii=False)
    if output is not None:
        output.write_text(document + "\n", encoding="utf-8")
    if plot is not None:
        from ssd_engine.evaluation.speed_plot import to_figure

        to_figure(report).savefig(plot, dpi=150)
    if as_json:
        typer.echo(document)
    else:
        _print(report, "x\nvllm" if backend == "vllm" else "x gen-\nerate", is_quick=quick)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=stderr, transient=True)


def _print(report: Report, ratio_to_baseline: str, *, is_quick: bool) -> None:
    for workload in report.environment["workloads"]:
        stdout.print(_table(workload, [row for row in report.rows if row.workload == workload], ratio_to_baseline))
    for requests, ratio in report.round_ratios.items():
        stdout.print(f"{requests} at once: a round of vllm, ssd takes {ratio:.2f} of one of vllm, speculative.")
    for context in report.contexts:
        stdout.print(
            f"ssd after a prompt of {context.prompt_tokens} tokens: first token after {context.first_token:.1f} s, "
            f"then {context.tokens_per_second:.2f} tokens/s; peak memory {context.peak_memory / 1e9:.1f} GB."
        )
    turn, where = report.second_turn, report.environment
    if turn is not None:
        stdout.print(
            f"Second turn after {turn.history_tokens} tokens of history: first token after {turn.second:.2f} s, "
            f"first turn {turn.first:.2f} s ({turn.second / turn.first:.2f} of it)."
        )
    guided = report.guided
    if guided is not None:
        stdout.print(
            f"ssd under a JSON schema: {guided.json_tokens_per_second:.2f} tokens/s after the first round, "
            f"{guided.forced_share:.0%} of the tokens forced; text of the same length without a grammar "
            f"{guided.free_tokens_per_second:.2f}. A grammar that allows any text takes {guided.overhead:.1%} of a "
            "round."
        )
    if is_quick:
        for name, headline in report.headlines().items():
            stdout.print(f"{name}: {'not measured' if headline is None else f'[bold]{headline:.2f}[/bold]'}")
        if "llama_cpp" not in where:
            stdout.print("llama.cpp runs a preset's GGUF files; it comes with ssd-integrations\\[bench].")
    compiled = ", compiled" if where["compile"] else ""
    others = "generate and assisted are transformers' own" if not is_quick else "ssd as it is shipped"
    if "llama_cpp" in where:
        others += f", llama.cpp is xllamacpp {where['llama_cpp']} with the GGUF files as they are"
    if "vllm" in where:
        others = f"vllm {where['vllm']} with weights of type {where['vllm_dtype']}"
    stdout.print(
        f"Medians over {where['prompts']} prompts of {where['max_new_tokens']} tokens, greedy; {others}. "
        f"GB/s are weights read while decoding; the machine reads {where['bytes_per_second'] / 1e9:.1f} at best. "
        f"{where['target']} with {where['draft']}{compiled}. {where['cores']} cores of {where['processor']} "
        f"({where['instructions']}); torch {where['torch']}, transformers {where['transformers']}; {where['date']}."
    )


def _table(workload: str, rows: Sequence[Row], ratio_to_baseline: str) -> Table:
    """The rows of one workload, without the columns that nobody has a value in."""

    def shown(value: float | None, pattern: str) -> str:
        return "" if value is None else format(value, pattern)

    several = len({row.requests for row in rows}) > 1
    # Two short words above each other, so that the table fits a terminal of 80 columns.
    columns = {
        "at\nonce": [str(row.requests) if several else "" for row in rows],
        "tokens\n/s": [f"{row.tokens_per_second:.2f}" for row in rows],
        "deco-\nding": [shown(row.decoding_tokens_per_second, ".2f") for row in rows],
        ratio_to_baseline: [shown(row.ratio_to_baseline, ".2f") for row in rows],
        "match\nrate": [shown(row.match_rate, ".2f") for row in rows],
        "a\nround": [shown(row.tokens_per_round, ".2f") for row in rows],
        "first\ns": [f"{row.first_token:.1f}" for row in rows],
        "peak\nGB": [shown(row.peak_memory and row.peak_memory / 1e9, ".1f") for row in rows],
        "GB/s": [shown(row.bytes_per_second and row.bytes_per_second / 1e9, ".1f") for row in rows],
        "of\nbest": [shown(row.share_of_bandwidth, ".2f") for row in rows],
    }
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column(workload if several else f"{workload}, {rows[0].requests} at once", no_wrap=True)
    used = {name: cells for name, cells in columns.items() if any(cells)}
    for name in used:
        table.add_column(name, justify="right", no_wrap=True)
    for row, *cells in zip(rows, *used.values(), strict=True):
        table.add_row(row.name, *cells)
    return table
