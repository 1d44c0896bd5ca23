"""Sets of prompts, from JSON, JSONL or CSV files or from the dataset hub, for alignment and evaluation."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssd_engine.errors import InvalidDataError

Row = dict[str, Any]
GOAL = ("goal", "Goal", "forbidden_prompt", "Behavior", "behavior", "prompt")
"""Where a harmful request may stand: AdvBench, JailbreakBench, StrongREJECT, HarmBench, and plain sets of prompts."""
PROMPT = ("prompt", "question", "instruction", "Goal")
"""Where a harmless request may stand."""
TARGET = ("target", "Target")
"""Where the beginning of an answer that complies may stand."""


def read_prompt_set(
    source: str | Path, fields: Mapping[str, Sequence[str]], optional: Mapping[str, Sequence[str]] | None = None
) -> list[Row]:
    """Read a set of prompts.

    Published formats are read as they are: JailbreakBench's behaviors and artifacts (of which rows without a prompt
    are left out), HarmBench's behaviors (a context stands before its request) and test cases (whose goals are the
    words of their ids), StrongREJECT's and AdvBench's tables.

    Args:
        source: file (.json, .jsonl or .csv), or dataset id on the hub, with `:split` or `:split:config` behind
            it for another split than "train" and another configuration than the default.
        fields: what each row needs, and under which names it may stand; the first one that a row has is taken.
        optional: what a row may have, alike.

    Returns:
        The rows, each with these fields under the names that `fields` and `optional` give them, and with all others.

    Raises:
        InvalidDataError: the source cannot be read, is empty, or a row lacks a field or has no text there.
    """
    rows = _read(str(source))
    if not rows:
        raise InvalidDataError(f"{source}: the set is empty; give one with at least one row")
    return [_with_fields(row, number, str(source), fields, optional or {}) for number, row in enumerate(rows, 1)]


def _with_fields(
    row: Any,
    number: int,
    source: str,
    fields: Mapping[str, Sequence[str]],
    optional: Mapping[str, Sequence[str]],
) -> Row:
    if not isinstance(row, Mapping):
        raise InvalidDataError(f"{source}, row {number}: {row!r} is no object; rows need named fields")
    found: Row = dict(row)
    for field, names in optional.items():
        if text := next((row[name] for name in names if isinstance(row.get(name), str) and row[name].strip()), None):
            found[field] = text
    for field, names in fields.items():
        name = next((name for name in names if name in row), None)
        if name is None:
            wanted = " or ".join(repr(name) for name in names)
            raise InvalidDataError(
                f"{source}, row {number}: there is no field {wanted}; it has {', '.join(map(repr, row)) or 'none'}"
            )
        if not isinstance(row[name], str) or not row[name].strip():
            raise InvalidDataError(f"{source}, row {number}: field {name!r} is {row[name]!r}; it has to be text")
        found[field] = row[name]
    return found


def _in_its_context(row: Row) -> Row:
    """A behavior of HarmBench as it is asked there: behind its context, if it has one."""
    context, behavior = row.get("ContextString"), row.get("Behavior")
    return {**row, "Behavior": f"{context}\n\n---\n\n{behavior}"} if context and behavior else row


def _rows_of(document: Any, path: Path) -> Sequence[Any]:
    """The rows of a JSON document: a list of them, an artifact of JailbreakBench, or test cases of HarmBench."""
    if isinstance(document, list):
        return document
    if isinstance(document, Mapping):
        if isinstance(found := document.get("jailbreaks"), list):
            return [row for row in found if not (isinstance(row, Mapping) and row.get("prompt", "") is None)]
        if document and all(isinstance(prompts, list) for prompts in document.values()):
            return [
                {"goal": name.replace("_", " "), "behavior_id": name, "prompt": prompt}
                for name, prompts in document.items()
                for prompt in prompts
            ]
    raise InvalidDataError(
        f"{path} holds {type(document).__name__}, not a list of rows; objects are read that have a list 'jailbreaks' "
        "(JailbreakBench) or a list of prompts for each behavior (HarmBench)"
    )


def _read(source: str) -> Sequence[Any]:
    path = Path(source)
    readers = {".json": _read_json, ".jsonl": _read_jsonl, ".csv": _read_csv}
    if path.suffix in readers:
        try:
            return readers[path.suffix](path)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InvalidDataError(f"{source} cannot be read: {error}") from error
    if path.exists():
        raise InvalidDataError(f"{source} ends in {path.suffix!r}; give a file that ends in {', '.join(readers)}")
    return _read_hub(source)


def _read_json(path: Path) -> Sequence[Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InvalidDataError(f"{path} is no JSON: {error}") from error
    return _rows_of(document, path)


def _read_jsonl(path: Path) -> Sequence[Any]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise InvalidDataError(f"{path}, line {number} is no JSON: {error}") from error
    return rows


def _read_csv(path: Path) -> Sequence[Any]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [_in_its_context(row) for row in csv.DictReader(file)]


def _read_hub(source: str) -> Sequence[Any]:
    try:
        import datasets
    except ImportError as error:
        raise InvalidDataError(
            f"{source!r} is no file here, so it would be a dataset of the hub, which needs the package datasets: "
            'pip install "ssd-integrations[hub-data]", or give a .json, .jsonl or .csv file'
        ) from error
    name, _, rest = source.partition(":")
    split, _, config = rest.partition(":")
    try:
        return list(datasets.load_dataset(name, config or None, split=split or "train"))
    except Exception as error:  # the hub's client raises what its transport raises
        reason = str(error).strip().split("\n", 1)[0]
        raise InvalidDataError(f"{source!r} is no file here, and the dataset hub does not give it: {reason}") from error
