"""The training itself: a LoRA adapter for the draft, by peft and transformers' Trainer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from ssd_engine.alignment.examples import Example
from ssd_engine.alignment.settings import AlignSettings
from ssd_engine.backends.transformers.memory import available_bytes
from ssd_engine.errors import InvalidRequestError
from ssd_engine.work import Reporter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_IGNORED = -100
"""Label of a token that is not to be learned; PyTorch's."""


@dataclass(frozen=True)
class Validation:
    """How the draft does on what was kept from training."""

    step: int
    loss: float
    """Cross entropy, per token to be learned."""
    match_rate: float
    """Share of the tokens of the target's answers that are the draft's own first choice."""
    recovery_rate: float
    """Share of the recoveries in which each token of the refusal is the draft's first choice."""


@dataclass(frozen=True)
class TrainingReport:
    """What a training came to."""

    steps: int
    losses: list[tuple[int, float]]
    """(step, training loss)"""
    validations: list[Validation]
    """The first one is the draft's before the training."""
    best_step: int


def train_adapter(
    model: PreTrainedModel,
    training: Sequence[Example],
    validation: Sequence[Example],
    settings: AlignSettings,
    folder: Path,
    report: Reporter,
) -> tuple[Any, TrainingReport]:
    """Train an adapter, from the last checkpoint in `folder` if there is one.

    Returns:
        The model with the adapter of the lowest validation loss (a `peft.PeftModel`), and how it went.

    Raises:
        InvalidRequestError: there is not enough memory for a batch.
    """
    from peft import LoraConfig, get_peft_model

    _require_memory(model, training, settings.batch_size)
    torch.manual_seed(settings.seed)
    config = LoraConfig(
        r=settings.lora_rank, lora_alpha=2 * settings.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, config)
    longest_first = sorted(validation, key=lambda example: len(example.token_ids), reverse=True)
    callback = _Reports(report)
    trainer = Trainer(
        adapted,
        _arguments(settings, folder, len(training), model.device.type),
        data_collator=collate,
        train_dataset=training,
        eval_dataset=longest_first,
        compute_metrics=lambda prediction: _metrics(prediction, longest_first),
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
        callbacks=[EarlyStoppingCallback(settings.patience), callback],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)
    return adapted, _report_of(trainer.state)


def _require_memory(model: PreTrainedModel, examples: Sequence[Example], batch_size: int) -> None:
    """An estimate in time, instead of a process that is killed an hour later."""
    config = model.config.get_text_config()
    hidden, inner = config.hidden_size, getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    tokens = batch_size * max(len(example.token_ids) for example in examples)
    learned = batch_size * max(example.num_learned for example in examples)
    # What each layer keeps for the way back, and the logits with their softmax and gradient, in float32.
    needed = 4 * (tokens * config.num_hidden_layers * (14 * hidden + 4 * inner) + 3 * learned * config.vocab_size)
    available = available_bytes(model.device)
    if needed > available:
        raise InvalidRequestError(
            f"batch_size={batch_size} needs about {needed / 1e9:.1f} GB beside the model, and {available / 1e9:.1f} GB "
            "are available; lower batch_size or answer_tokens"
        )


def collate(examples: Sequence[Example]) -> dict[str, Any]:
    """A batch, padded on the left, with logits and labels for the learned ends alone: [B, T] and [B, L + 1]."""
    longest = max(len(example.token_ids) for example in examples)
    kept = 1 + max(example.num_learned for example in examples)
    batch: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "position_ids": [], "labels": []}
    for example in examples:
        length, token_ids = len(example.token_ids), list(example.token_ids)
        padding = longest - length
        batch["input_ids"].append([0] * padding + token_ids)
        batch["attention_mask"].append([0] * padding + [1] * length)
        batch["position_ids"].append([0] * padding + list(range(length)))
        batch["labels"].append([_IGNORED] * (kept - example.num_learned) + token_ids[length - example.num_learned :])
    return {**{name: torch.tensor(rows) for name, rows in batch.items()}, "logits_to_keep": kept}


def _arguments(settings: AlignSettings, folder: Path, num_examples: int, device: str) -> TrainingArguments:
    steps = math.ceil(math.ceil(num_examples / settings.batch_size) * settings.epochs)
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(0.05 * steps),
        bf16=device == "cuda",
        seed=settings.seed,
        eval_strategy="steps",
        eval_steps=settings.checkpoint_steps,
        eval_on_start=True,
        save_steps=settings.checkpoint_steps,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=5,
        eval_do_concat_batches=False,
        remove_unused_columns=False,
        dataloader_pin_memory=device == "cuda",
        disable_tqdm=True,
        use_cpu=device == "cpu",
    )


def _metrics(prediction: Any, examples: Sequence[Example]) -> dict[str, float]:
    """`Validation`'s rates, from the first choices at each position of each batch."""
    matched = learned = recovered = recoveries = 0
    index = 0
    for choices, labels in zip(prediction.predictions, prediction.label_ids, strict=True):
        right = (choices[:, :-1] == labels[:, 1:]) & (labels[:, 1:] != _IGNORED)
        for row in right.sum(axis=1).tolist():
            example = examples[index]
            index += 1
            if example.kind == "agreement":
                matched, learned = matched + row, learned + example.num_learned
            else:
                recovered, recoveries = recovered + (row == example.num_learned), recoveries + 1
    return {"match_rate": matched / max(learned, 1), "recovery_rate": recovered / max(recoveries, 1)}


def _validation(logs: dict[str, float], step: int) -> Validation:
    return Validation(step, logs["eval_loss"], logs["eval_match_rate"], logs["eval_recovery_rate"])


def _report_of(state: Any) -> TrainingReport:
    history = state.log_history
    return TrainingReport(
        steps=state.global_step,
        losses=[(logs["step"], logs["loss"]) for logs in history if "loss" in logs],
        validations=[_validation(logs, logs["step"]) for logs in history if "eval_loss" in logs],
        best_step=state.best_global_step,
    )


class _Reports(TrainerCallback):  # type: ignore[misc]
    """Passes on how far the Trainer is."""

    def __init__(self, report: Reporter) -> None:
        self._report = report
        self._loss = math.nan

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step:
            self._report.note(f"Going on from the checkpoint of step {state.global_step}.")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._report.step(f"Training, loss {self._loss:.3f}", state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        self._loss = logs.get("loss", self._loss)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        found = _validation(metrics, state.global_step)
        self._report.note(
            f"Step {found.step}: validation loss {found.loss:.3f}, match rate {found.match_rate:.1%}, "
            f"recovery rate {found.recovery_rate:.1%}"
        )
