"""The training itself: a LoRA adapter for the draft, by peft and transformers' Trainer."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ssd_engine.alignment.batches import IGNORED, collate, in_batches
from ssd_engine.alignment.checkpoints import last_whole_checkpoint
from ssd_engine.alignment.examples import Example
from ssd_engine.alignment.settings import AlignSettings
from ssd_engine.campaigns.work import Reporter
from ssd_engine.errors import InvalidRequestError
from ssd_engine.models.memory import available_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
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
    *,
    start: str | None = None,
) -> tuple[Any, TrainingReport]:
    """Train an adapter, from the last whole checkpoint in `folder` if there is one.

    Args:
        start: folder of an adapter to go on from; None: a new one.

    Returns:
        The model with the adapter of the lowest validation loss (a `peft.PeftModel`), and how it went.

    Raises:
        InvalidDataError: the last checkpoint cannot be read.
        InvalidRequestError: there is not enough memory for a batch.
    """
    _require_memory(model, training, settings)
    torch.manual_seed(settings.seed)
    ordered = in_batches(training, settings.batch_size, settings.epochs, settings.seed)
    adapted = _adapted(model, settings, start)
    checkpoint = last_whole_checkpoint(folder, report)
    arguments = _arguments(settings, folder, len(ordered), model.device.type, is_new=checkpoint is None)
    loss = _SummedLoss(settings.batch_size * sum(e.num_learned for e in ordered) / len(ordered))
    trainer = _trainer(adapted, arguments, validation, loss, _Reports(report), ordered, settings.patience)
    trainer.train(resume_from_checkpoint=checkpoint)
    return adapted, _report_of(trainer.state, loss.per_token(validation, settings.batch_size))


def _adapted(model: PreTrainedModel, settings: AlignSettings, start: str | None) -> Any:
    """The model with an adapter of which the wanted layers are trained."""
    from peft import LoraConfig, PeftModel, get_peft_model

    if start is None:
        config = LoraConfig(
            r=settings.lora_rank, lora_alpha=2 * settings.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        adapted = get_peft_model(model, config)
    else:
        adapted = PeftModel.from_pretrained(model, start, is_trainable=True)
        # Its own name for the base may be one of the hub, which peft would ask at each checkpoint.
        adapted.peft_config["default"].base_model_name_or_path = model.name_or_path
    first = model.config.get_text_config().num_hidden_layers - _num_trained_layers(model, settings)
    for name, parameter in adapted.named_parameters():
        layer = re.search(r"\.(?:layers|h|blocks)\.(\d+)\.", name)
        if layer is not None and int(layer[1]) < first:
            parameter.requires_grad_(requires_grad=False)
    return adapted


def validate(
    model: PreTrainedModel, validation: Sequence[Example], settings: AlignSettings, folder: Path, report: Reporter
) -> Validation:
    """How a model does on examples."""
    arguments = _arguments(settings, folder, len(validation), model.device.type, is_new=True)
    loss = _SummedLoss(1.0)
    metrics = _trainer(model, arguments, validation, loss, _Reports(report)).evaluate()
    return _validation(metrics, 0, loss.per_token(validation, settings.batch_size))


class _SummedLoss:
    """Cross entropy of all tokens to be learned, over a number that is the same for every batch.

    So each token weighs the same, whatever batch it is in: batches of short recoveries hold few of them.
    """

    def __init__(self, tokens_per_batch: float) -> None:
        self._tokens_per_batch = tokens_per_batch

    def __call__(self, outputs: Any, labels: torch.Tensor, **_: Any) -> torch.Tensor:
        logits = outputs.logits.float().flatten(0, 1)
        total = torch.nn.functional.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="sum")
        return total / self._tokens_per_batch

    def per_token(self, examples: Sequence[Example], batch_size: int) -> float:
        """What a mean of batches, each counted once for each of its examples, is to be multiplied with."""
        learned = sum(example.num_learned for example in examples)
        return self._tokens_per_batch * len(examples) / (batch_size * learned)


def _trainer(
    model: Any,
    arguments: TrainingArguments,
    validation: Sequence[Example],
    loss: _SummedLoss,
    reports: _Reports,
    training: Sequence[Example] | None = None,
    patience: int | None = None,
) -> Trainer:
    longest_first = sorted(validation, key=lambda example: example.num_tokens, reverse=True)
    reports.per_token = loss.per_token(validation, arguments.per_device_eval_batch_size)
    trainer = Trainer(
        model,
        arguments,
        data_collator=collate,
        train_dataset=training,
        eval_dataset=longest_first,
        compute_loss_func=loss,
        compute_metrics=lambda prediction: _metrics(prediction, longest_first),
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
        callbacks=[reports, *([EarlyStoppingCallback(patience)] if patience else [])],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _num_trained_layers(model: PreTrainedModel, settings: AlignSettings) -> int:
    num_layers: int = model.config.get_text_config().num_hidden_layers
    return min(settings.trained_layers or num_layers, num_layers)


def _require_memory(model: PreTrainedModel, examples: Sequence[Example], settings: AlignSettings) -> None:
    """An estimate in time, instead of a process that is killed an hour later."""
    config, batch_size = model.config.get_text_config(), settings.batch_size
    hidden, inner = config.hidden_size, getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    tokens = batch_size * max(example.num_tokens for example in examples)
    learned = batch_size * max(example.num_learned for example in examples)
    # What each trained layer keeps for the way back, and the logits with their softmax and gradient, in float32.
    kept = tokens * _num_trained_layers(model, settings) * (14 * hidden + 4 * inner)
    needed = 4 * (kept + 3 * learned * config.vocab_size)
    available = available_bytes(model.device)
    if needed > available:
        raise InvalidRequestError(
            f"batch_size={batch_size} needs about {needed / 1e9:.1f} GB beside the model, and {available / 1e9:.1f} GB "
            "are available; lower batch_size or answer_tokens"
        )


def _arguments(
    settings: AlignSettings, folder: Path, num_examples: int, device: str, *, is_new: bool
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        num_train_epochs=1,  # the order of the examples has the passes in it
        train_sampling_strategy="sequential",
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(0.05 * num_examples / settings.batch_size),
        bf16=device == "cuda",
        seed=settings.seed,
        eval_strategy="steps",
        eval_steps=settings.checkpoint_steps,
        eval_on_start=is_new,
        save_steps=settings.checkpoint_steps,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,  # how long the loss has not fallen
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
        for right in choices == labels:
            example = examples[index]
            index += 1
            place = len(right) - example.num_learned
            for ending in example.endings:
                rights = right[place : place + len(ending.token_ids)]
                place += len(ending.token_ids)
                if example.kind == "agreement":
                    matched, learned = matched + rights.sum(), learned + len(rights)
                elif not ending.is_start:
                    recovered, recoveries = recovered + rights.all(), recoveries + 1
    return {"match_rate": float(matched / max(learned, 1)), "recovery_rate": float(recovered / max(recoveries, 1))}


def _validation(logs: dict[str, float], step: int, per_token: float) -> Validation:
    return Validation(
        step=step,
        loss=logs["eval_loss"] * per_token,
        match_rate=logs["eval_match_rate"],
        recovery_rate=logs["eval_recovery_rate"],
    )


def _report_of(state: Any, per_token: float) -> TrainingReport:
    history = state.log_history
    return TrainingReport(
        steps=state.global_step,
        losses=[(logs["step"], logs["loss"]) for logs in history if "loss" in logs],
        validations=[_validation(logs, logs["step"], per_token) for logs in history if "eval_loss" in logs],
        best_step=state.best_global_step,
    )


class _Reports(TrainerCallback):  # type: ignore[misc]
    """Passes on how far the Trainer is."""

    def __init__(self, report: Reporter) -> None:
        self._report = report
        self._loss = math.nan
        self._num_validated = 0
        self.per_token = 1.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._report.step("Training", 0, state.max_steps)
        if state.global_step:
            self._report.note(f"Going on from the checkpoint of step {state.global_step}.")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._report.step(f"Training, loss {self._loss:.3f}", state.global_step, state.max_steps)

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any, **_: Any) -> None:
        self._num_validated += 1
        self._report.step("Validation", self._num_validated, len(eval_dataloader))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        self._loss = logs.get("loss", self._loss)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        self._num_validated = 0
        found = _validation(metrics, state.global_step, self.per_token)
        self._report.note(
            f"Step {found.step}: validation loss {found.loss:.3f}, match rate {found.match_rate:.1%}, "
            f"recovery rate {found.recovery_rate:.1%}"
        )
