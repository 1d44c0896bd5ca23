"""The model card that goes with an adapter."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ssd_engine.alignment.settings import AlignSettings
from ssd_engine.alignment.training import TrainingReport, Validation


@dataclass(frozen=True)
class DataSource:
    """One set of prompts that went into the training."""

    role: str
    source: str
    rows: int

    def described(self) -> str:
        """The set as a card names it."""
        path = Path(self.source)
        # A file is told by its name and content: where it lay says nothing to others.
        digest = f", {_mark(path)}" if path.is_file() else ""
        return f"| {self.role} | {path.name if path.is_file() else self.source}{digest} | {self.rows} |"


def model_card(
    base: str,
    target: str,
    sources: Sequence[DataSource],
    counts: dict[str, int],
    settings: AlignSettings,
    training: TrainingReport,
    shipped: Validation,
    start: Path | None = None,
) -> str:
    """A card in the hub's format: what the adapter is for, its data, settings, losses and validation.

    Args:
        start: folder of the adapter that the training went on from.
    """
    before = training.validations[0]
    rank = f"a new adapter of rank {settings.lora_rank}" if start is None else _described_adapter(start)
    return f"""---
base_model: {base}
library_name: peft
pipeline_tag: text-generation
tags: [safety, speculative-decoding, lora]
---

# Safety adapter for {base}

A LoRA adapter that makes {base} a draft for Speculative Safety-Aware Decoding (arXiv 2508.17739) beside the target
{target}: it turns back to a refusal at whatever depth a harmful answer has come to, and agrees with the target on
ordinary prompts. It is made for that use; alone it is a small model like its base.

## Data

| role | set | rows |
|---|---|---|
{chr(10).join(source.described() for source in sources)}

{counts["recovery"]} recoveries (a harmful request, a beginning of an answer of 0 or more tokens, a refusal; the loss is
on the refusal alone), the first tokens of refusals at {counts["start"]} further depths, and {counts["agreement"]}
answers of the {settings.writer} to harmless prompts. Beginnings were carried on by the {settings.writer} for at most
{settings.continued_tokens} tokens, in memory. Answers to requests with instructions or tools are the
target's, or were given with the request. {counts["validation"]} examples were kept from training.

## Settings

{", ".join(f"{name} {value!r}" for name, value in settings.model_dump(exclude={"lora_rank"}).items())}

ssd-integrations {version("ssd-integrations")}, torch {version("torch")}, transformers {version("transformers")}, peft
{version("peft")}. Method: recovery examples after Qi et al. (arXiv 2406.05946), with agreement training added.

## Training

It began with {rank}. {training.steps} steps; the adapter is that of step
{training.best_step}, which had the lowest validation loss.

| on what was kept from training | before | after |
|---|---|---|
| loss per token | {before.loss:.3f} | {shipped.loss:.3f} |
| match rate | {before.match_rate:.1%} | {shipped.match_rate:.1%} |
| recovery rate | {before.recovery_rate:.1%} | {shipped.recovery_rate:.1%} |

The match rate is the share of the answers' tokens that are the draft's first choice, the recovery rate the share of
refusals of which every token is. "After" is the adapter as it is stored, merged into the draft as an engine does it.

| step | training loss |
|---|---|
{chr(10).join(f"| {step} | {loss:.3f} |" for step, loss in _thinned(training.losses))}

## Limits

It was trained on requests in English, and guards against what resembles them. How the pair withstands attacks, and what
that costs, is measured with `ssd eval`.
"""


def _described_adapter(folder: Path) -> str:
    rank = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["r"]
    return f"an adapter of rank {rank} ({_mark(folder / 'adapter_model.safetensors')})"


def _mark(path: Path) -> str:
    return f"SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}…"


def _thinned(losses: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """About ten of them."""
    return losses[:: max(1, len(losses) // 10)]
