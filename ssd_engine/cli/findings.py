"""What is found of a machine or a pair, printed as tables of a name and a finding."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from ssd_engine.cli.console import printable, stdout

if TYPE_CHECKING:
    from ssd_engine.doctor.pair import ModelNeeds, PairNeeds
    from ssd_engine.doctor.safety import DraftSafety
    from ssd_engine.doctor.vocabularies import VocabularyMatch

Rows = Iterable[tuple[str, str]]


def print_table(title: str, rows: Rows) -> None:
    """Print rows under a title."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, finding in rows:
        table.add_row(name, Text(printable(finding)))
    stdout.print(Text(printable(title), "bold"))
    stdout.print(table)
    stdout.print()


def pair_rows(pair: PairNeeds) -> Rows:
    """What is known of a pair without its weights."""
    for role, model in (("target", pair.target), ("draft", pair.draft)):
        yield role, "; ".join(_model(model))
    if pair.safety is not None:
        yield from _safety(pair.safety)
    if pair.shared_tokens is not None:
        yield "vocabulary", f"one, of {pair.shared_tokens:,} tokens"
    if pair.vocabularies is not None:
        yield from _vocabularies(pair.vocabularies)
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
        yield f"to be fetched at first use, {gigabytes(model.fetched_bytes)}"
    elif model.state != "here":
        yield f"{model.state} at first use" if model.state == "to be converted" else "not here"
    if model.bytes_held is not None:
        yield f"{gigabytes(model.bytes_held)} as {model.form}"


def _safety(safety: DraftSafety) -> Rows:
    adapter = safety.adapter
    if adapter is None:
        yield "adapter", "none: the pair is as safe as this draft (ssd align makes one)"
    else:
        folder = Path(adapter)
        yield "adapter", f"the package's own for {folder.name}" if folder.parent.name == "adapters" else adapter
    readable = ", ".join(safety.signals) or "not known before the draft is here"
    yield "signals", f"{readable}; used: {', '.join(safety.used_signals) or 'none'}"


def _vocabularies(match: VocabularyMatch) -> Rows:
    yield (
        "vocabulary",
        f"two: {match.shared_tokens:,} of the target's {match.target_tokens:,} tokens are among the draft's "
        f"{match.draft_tokens:,}, {match.shared_text:.1%} of those in ordinary text",
    )
    yield "", f"the draft reads {match.reading_ratio:.3f} tokens for one of the target's"


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
    yield "memory", f"{gigabytes(weights)} for weights; {gigabytes(pair.memory_free)} free on {pair.device}"
    if pair.cache_bytes is not None:
        yield (
            "",
            f"{gigabytes(pair.cache_bytes)} for key-value caches of {pair.cache_positions:,} tokens, as they fill",
        )


def gigabytes(size: int) -> str:
    """A number of bytes, to read."""
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"
