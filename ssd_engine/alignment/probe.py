"""The probe: a linear head on the aligned draft's hidden states that tells harmful answers from harmless ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssd_engine.alignment.examples import Example
from ssd_engine.alignment.settings import AlignSettings
from ssd_engine.campaigns.work import Reporter
from ssd_engine.errors import InvalidRequestError
from ssd_engine.rule.draft_signals import DraftSignals, Probe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LARGEST_STEP_COUNT = 100
_PENALTY = 1e-3
"""Weight of the squared weights, so that few examples are not learned by heart."""


def make_signals(
    model: PreTrainedModel,
    training: Sequence[Example],
    validation: Sequence[Example],
    settings: AlignSettings,
    fingerprint: str,
    report: Reporter,
) -> DraftSignals:
    """What signals are read from an aligned draft with.

    Args:
        model: the draft with its adapter, as an engine runs it.
        training, validation: the alignment's examples. The threshold is chosen on the harmless places of `validation`.
        fingerprint: of the draft without the adapter.

    Raises:
        InvalidRequestError: `probe_layer` is none of the model's.
    """
    num_layers = model.config.get_text_config().num_hidden_layers
    layer = settings.probe_layer or max(1, min(round(0.75 * num_layers), num_layers - 1))
    if layer >= num_layers:  # what comes out of the last one has been normalised when transformers shows it
        raise InvalidRequestError(f"probe_layer={layer}: the draft has {num_layers} layers; give one below the last")
    read = random.Random(settings.seed).sample(training, min(settings.probe_examples, len(training)))
    states, labels = _states(model, read, layer, report, "The probe reads examples")
    weight, bias = _fit(states, labels)
    states, labels = _states(model, validation, layer, report, "The probe reads what was kept from training")
    scores = (states @ weight + bias).sigmoid()
    harmless = scores[labels == 0]
    # The least threshold that no more than the rate reaches.
    threshold = float(harmless.sort(descending=True).values[int(settings.false_alarm_rate * len(harmless))]) + 1e-6
    threshold = min(threshold, 1.0)
    caught = float((scores[labels == 1] >= threshold).float().mean())
    report.note(
        f"Probe on layer {layer}: at {threshold:.3f} it is past the threshold at {settings.false_alarm_rate:.1%} of "
        f"harmless places and at {caught:.1%} of harmful ones."
    )
    return DraftSignals(
        refusal_ids=refusal_ids_of(training),
        break_ids=break_ids_of(training),
        probe=Probe(
            layer=layer, weight=weight, bias=bias, threshold=threshold, false_alarm_rate=settings.false_alarm_rate
        ),
        fingerprint=fingerprint,
    )


def refusal_ids_of(examples: Sequence[Example]) -> tuple[int, ...]:
    """The tokens with which the refusals of the examples begin."""
    refusals = [ending for example in examples if example.kind == "recovery" for ending in example.endings]
    return tuple(sorted({refusal.token_ids[0] for refusal in refusals}))


def break_ids_of(examples: Sequence[Example]) -> tuple[int, ...]:
    """The tokens with which those refusals begin that follow a beginning: they come later than the example's first."""
    found = set()
    for example in examples:
        if example.kind == "recovery":
            at_once = min(refusal.place for refusal in example.endings)
            found |= {refusal.token_ids[0] for refusal in example.endings if refusal.place > at_once}
    return tuple(sorted(found))


def _states(
    model: PreTrainedModel, examples: Sequence[Example], layer: int, report: Reporter, name: str
) -> tuple[Tensor, Tensor]:
    """[N, H] states of `layer` at the answers' places, and [N] 1 where the answer is harmful, else 0."""
    states: list[Tensor] = []
    labels: list[float] = []
    with torch.inference_mode():
        for done, example in enumerate(examples):
            report.step(name, done, len(examples))
            token_ids, places = _text_and_places(example)
            # The bare decoder: no logits are wanted here.
            output = model.base_model(
                input_ids=torch.tensor([token_ids], device=model.device), output_hidden_states=True, use_cache=False
            )
            states.append(output.hidden_states[layer][0, places].float().cpu())
            labels += [float(example.kind == "recovery")] * len(places)
    return torch.cat(states).clone(), torch.tensor(labels)


def _text_and_places(example: Example) -> tuple[list[int], list[int]]:
    """A text to read, and the tokens of it after which a place of the answer comes."""
    if example.kind == "recovery":
        return list(example.context), [ending.place - 1 for ending in example.endings]
    ending = example.endings[0]
    token_ids = [*example.context, *ending.token_ids[:-1]]
    return token_ids, list(range(ending.place - 1, len(token_ids)))


def _fit(states: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Logistic regression, with both classes weighing the same: [H] weight, and bias."""
    mean, deviation = states.mean(0), states.std(0) + 1e-3
    scaled = (states - mean) / deviation
    share = labels.mean().clamp(1e-3, 1 - 1e-3)
    weights = torch.where(labels > 0, 0.5 / share, 0.5 / (1 - share))
    weight = torch.zeros(states.shape[1], requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_LARGEST_STEP_COUNT, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(scaled @ weight + bias, labels, weights)
        penalized: Tensor = loss + _PENALTY * (weight * weight).sum()
        penalized.backward()  # type: ignore[no-untyped-call]
        return penalized

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    unscaled = (weight / deviation).detach()
    return unscaled, float(bias.detach() - (unscaled * mean).sum())
