"""Does the pair call tools rightly? Forty tasks for each decoding, eight of every kind.

    python benchmarks/tool_calls.py [--decoding DECODING] [--only KIND] [--limit N] [--json FILE]

Kinds: `tool` (the right one of several), `arguments` (numbers, enums, optional, nested and listed ones), `none` (a
question that needs no tool), `two` (a call, and with its result a second one) and `parallel` (two calls in one answer).
An answer is right when it holds exactly the expected calls. Both steps of `two` are asked on their own, the second with
the right first call and its result, and the task is right when both are.

Prints two tables: how many tasks are right with `tool_choice="auto"`, and, with `tool_choice="any"` on the tasks that
need a call, how many answers hold one and what share of all calls validates against the JSON Schema of its tool. All
is greedy, so a second run gives the same. Needs `jsonschema`; takes half an hour on two cores.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from jsonschema import Draft202012Validator
from rich import box
from rich.table import Table
from tool_call_tasks import KINDS, TASKS, Kind, Task, same_in_any_order
from tqdm.auto import tqdm

from ssd_engine import GenerationParams, SSDEngine
from ssd_engine.answers.result import GenerationResult
from ssd_engine.cli.console import stdout
from ssd_engine.cli.pair_options import load, takes_pair
from ssd_engine.config import Decoding
from ssd_engine.evaluation.machine import processor
from ssd_engine.models.pair import PairSpec

AT_ONCE = 8
"""Requests that decode together."""
DECODINGS: tuple[Decoding, ...] = ("target", "speculative", "ssd")
TITLES: dict[Kind, str] = {
    "tool": "right tool",
    "arguments": "right arguments",
    "none": "no tool needed",
    "two": "two in a row",
    "parallel": "parallel calls",
}
DECODING_HELP = f"One of {', '.join(DECODINGS)}; repeatable, else all."
KIND_HELP = f"Tasks of one kind alone: {', '.join(KINDS)}; repeatable."


@dataclass(frozen=True)
class Answer:
    """What came back for one step of a task."""

    task: Task
    step: int
    decoding: Decoding
    tool_choice: str
    result: GenerationResult

    @property
    def is_right(self) -> bool:
        expected, result = self.task.steps[self.step].expected, self.result
        if result.invalid_tool_calls:
            return False
        if not expected:
            # A call of a tool that is not on offer is left in the text.
            return not result.tool_calls and bool(result.text.strip()) and '"arguments"' not in result.text
        written = [{"name": call.name, "arguments": call.arguments} for call in result.tool_calls]
        return same_in_any_order(tuple({"name": c.name, "arguments": c.arguments} for c in expected), written)

    @property
    def validity(self) -> list[bool]:
        """Of each call, broken ones included, whether it is as its tool's JSON Schema says."""
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in self.task.tools}
        valid = [
            call.name in schemas and Draft202012Validator(schemas[call.name]).is_valid(call.arguments)
            for call in self.result.tool_calls
        ]
        return valid + [False] * len(self.result.invalid_tool_calls)

    def to_json(self) -> dict[str, Any]:
        result = self.result
        return {
            "task": f"{self.task.topic}/{self.task.kind}",
            "step": self.step + 1,
            "decoding": self.decoding,
            "tool_choice": self.tool_choice,
            "right": self.is_right,
            "valid": self.validity,
            "raw": "".join(result.trace.texts),
            "text": result.text,
            "calls": [{"name": call.name, "arguments": call.arguments} for call in result.tool_calls],
            "broken": [{"text": call.text, "error": call.error} for call in result.invalid_tool_calls],
            "finish_reason": result.finish_reason,
            "tokens": len(result.token_ids),
        }


def ask(engine: SSDEngine, steps: Sequence[tuple[Task, int]], params: GenerationParams) -> list[Answer]:
    """Answer steps of tasks. From threads and not through `batch`, whose prompts have their tools in common."""

    def answer(step: tuple[Task, int]) -> Answer:
        task, index = step
        result = engine.generate(task.steps[index].messages, params, tools=task.tools)
        return Answer(task, index, params.decoding, params.tool_choice, result)

    with ThreadPoolExecutor(AT_ONCE) as callers:
        label = f"{params.decoding}, {params.tool_choice}"
        return list(tqdm(callers.map(answer, steps), desc=label, total=len(steps), unit="request"))


def one_of(known: Sequence[str]) -> Callable[[list[str] | None], list[str] | None]:
    """A check of a repeatable option, which typer cannot give a `Literal`."""

    def check(names: list[str] | None) -> list[str] | None:
        unknown = [name for name in names or [] if name not in known]
        if unknown:
            raise typer.BadParameter(f"{unknown[0]!r} is not one of {', '.join(known)}")
        return names

    return check


@takes_pair(without=("max_batch_size",))
def main(
    *,
    pair: PairSpec,
    decoding: Annotated[list[str] | None, typer.Option(help=DECODING_HELP, callback=one_of(DECODINGS))] = None,
    only: Annotated[list[str] | None, typer.Option(help=KIND_HELP, callback=one_of(KINDS))] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first tasks alone, five of which are one each.")] = None,
    max_tokens: Annotated[int, typer.Option(min=16, help="Most tokens in an answer.")] = 192,
    output: Annotated[Path | None, typer.Option("--json", help="Write every answer to this file.")] = None,
) -> None:
    """Ask, and print what was right."""
    tasks = [task for task in TASKS if task.kind in (only or KINDS)][:limit]
    steps = [(task, index) for task in tasks for index in range(len(task.steps))]
    first_calls = [(task, 0) for task in tasks if task.steps[0].expected]
    decodings = [name for name in DECODINGS if not decoding or name in decoding]
    answers: list[Answer] = []
    with load(pair.replaced(max_batch_size=AT_ONCE)) as engine:
        for way in decodings:
            for choice, asked in (("auto", steps), ("any", first_calls)):
                params = GenerationParams(max_new_tokens=max_tokens, decoding=way, tool_choice=choice)
                answers += ask(engine, asked, params)
                if output is not None:
                    document = json.dumps([answer.to_json() for answer in answers], indent=2, ensure_ascii=False)
                    output.write_text(document + "\n", encoding="utf-8")
        name = engine.name
    print_auto([answer for answer in answers if answer.tool_choice == "auto"], decodings)
    print_any([answer for answer in answers if answer.tool_choice == "any"], decodings)
    stdout.print(
        f"{len(tasks)} tasks, greedy, answers of at most {max_tokens} tokens, {AT_ONCE} at once. {name}. "
        f"{os.cpu_count()} cores of {processor()} ({torch.backends.cpu.get_cpu_capability()}); "
        f"torch {version('torch')}, transformers {version('transformers')}; {datetime.date.today().isoformat()}."
    )


def print_auto(answers: Sequence[Answer], decodings: Sequence[Decoding]) -> None:
    """How many tasks are right, by kind and in all."""
    table = new_table('tool_choice="auto": right', decodings)
    for kind in KINDS:
        of_kind = [answer for answer in answers if answer.task.kind == kind]
        add_row(table, TITLES[kind], of_kind, decodings, right_tasks)
        if kind == "two":
            for step, title in enumerate(("first call", "second call")):
                add_row(table, f"  {title}", [a for a in of_kind if a.step == step], decodings, right_tasks)
    table.add_section()
    add_row(table, "all", answers, decodings, right_tasks)
    add_row(table, "points of 100", answers, decodings, points)
    stdout.print(table)


def print_any(answers: Sequence[Answer], decodings: Sequence[Decoding]) -> None:
    """How many answers hold a call, how many calls are valid, and how many answers are right."""
    table = new_table('tool_choice="any"', decodings)
    add_row(table, "answers with a call", answers, decodings, with_call)
    add_row(table, "calls that validate", answers, decodings, valid_calls)
    add_row(table, "right answers", answers, decodings, right_tasks)
    stdout.print(table)


def new_table(title: str, decodings: Sequence[Decoding]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(title, no_wrap=True)
    for name in decodings:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def add_row(
    table: Table,
    title: str,
    answers: Sequence[Answer],
    decodings: Sequence[Decoding],
    cell: Callable[[Sequence[Answer]], str],
) -> None:
    """A row with a cell for each decoding; none where nothing was asked."""
    if answers:
        table.add_row(title, *(cell([answer for answer in answers if answer.decoding == name]) for name in decodings))


def task_results(answers: Sequence[Answer]) -> list[bool]:
    """Of each task, whether all its steps are right."""
    by_task: dict[tuple[str, str], bool] = {}
    for answer in answers:
        key = (answer.task.topic, answer.task.kind)
        by_task[key] = by_task.get(key, True) and answer.is_right
    return list(by_task.values())


def right_tasks(answers: Sequence[Answer]) -> str:
    return of_all(task_results(answers))


def points(answers: Sequence[Answer]) -> str:
    results = task_results(answers)
    return f"{100 * sum(results) / len(results):.1f}"


def with_call(answers: Sequence[Answer]) -> str:
    return of_all([bool(answer.result.tool_calls) for answer in answers])


def valid_calls(answers: Sequence[Answer]) -> str:
    results = [valid for answer in answers for valid in answer.validity]
    percent = f" = {sum(results) / len(results):.1%}" if results else ""
    return of_all(results) + percent


def of_all(results: Sequence[bool]) -> str:
    return f"{sum(results)}/{len(results)}"


if __name__ == "__main__":
    typer.run(main)
