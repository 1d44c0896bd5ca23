"""What the models' outputs give as signals at P places, before any temperature or mask; V is the shared vocabulary."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ssd_engine.config import SIGNALS, Signal
from ssd_engine.rule.draft_signals import DraftSignals
from ssd_engine.rule.signals import Scores


def refusal_mass(draft_logits: Tensor, refusal_ids: Tensor) -> Tensor:
    """[P] float32 the draft's probability of all `refusal_ids` [K] int64 together; `draft_logits` are [P, V]."""
    mass: Tensor = draft_logits.float().softmax(-1)[:, refusal_ids].sum(-1)
    return mass.clamp_max(1.0)


def divergence(draft_logits: Tensor, target_logits: Tensor) -> Tensor:
    """[P] float32 1 - exp(-KL(p_draft || p_target)), of [P, V] logits each."""
    draft, target = (_finite(logits) for logits in (draft_logits, target_logits))
    p_draft, p_target = draft.softmax(-1), target.softmax(-1)
    # The sum of p_m * (log p_m - log p_M), without a pass for logarithms: log p is the logit less one number a row.
    expected = torch.linalg.vecdot(p_draft, draft) - torch.linalg.vecdot(p_draft, target)
    kl = expected - (_log_normalizer(draft, p_draft) - _log_normalizer(target, p_target))
    score: Tensor = 1.0 - (-kl.clamp_min(0.0)).exp()
    return score


def _log_normalizer(logits: Tensor, p: Tensor) -> Tensor:
    """[P] what `logits` exceed the logarithms of `p` by, both [P, V]."""
    largest = logits.max(-1)
    return largest.values - p.gather(-1, largest.indices[:, None])[:, 0].log()


def _finite(logits: Tensor) -> Tensor:
    """Logits of which none is -inf, so that a probability of 0 times one is 0."""
    logits = logits.float()
    return logits.clamp_min(torch.finfo(logits.dtype).min / 4)


class SignalReader:
    """Reads a draft's signals at P places of any sequences."""

    def __init__(self, signals: DraftSignals, device: torch.device) -> None:
        """`device`: where the draft's logits are."""
        self._probe = signals.probe
        self._refusal_ids = torch.tensor(signals.refusal_ids, dtype=torch.int64, device=device)
        self._break_ids = torch.tensor(signals.break_ids, dtype=torch.int64, device=device)

    def probe_scores(self, hidden: Tensor) -> Tensor:
        """[P] float32 scores of the probe, on the logits' device; `hidden` [P, H] are states of its layer."""
        assert self._probe is not None
        return self._probe.scores(hidden).to(self._refusal_ids.device)

    def break_masses(self, draft_logits: Tensor) -> list[float]:
        """The probability that the draft breaks off, by its logits [P, V]."""
        masses: list[float] = refusal_mass(draft_logits, self._break_ids).tolist()
        return masses

    def read(
        self,
        used: Sequence[Collection[Signal]],
        draft_logits: Tensor,
        both_logits: tuple[Tensor, Tensor] | None,
        probe_scores: Tensor | None,
    ) -> list[Scores]:
        """The scores at each place.

        Args:
            used: P sets of signals that are wanted.
            draft_logits: [P, V_m] of the draft's own tokens, of whatever temperature 1 and no mask give.
            both_logits: [P, V] the draft's and the target's of the target's tokens; None: no place wants `kl`.
            probe_scores: [P]; None: no place wants `probe`.
        """
        table = draft_logits.new_zeros(len(used), len(SIGNALS), dtype=torch.float32)
        for column, signal in enumerate(SIGNALS):
            places = [place for place, signals in enumerate(used) if signal in signals]
            if not places:
                continue
            here = slice(None) if len(places) == len(used) else torch.tensor(places, device=table.device)
            match signal:
                case "refusal_mass":
                    table[here, column] = refusal_mass(draft_logits[here], self._refusal_ids)
                case "probe":
                    assert probe_scores is not None
                    table[here, column] = probe_scores[here]
                case "kl":
                    assert both_logits is not None
                    table[here, column] = divergence(*(logits[here] for logits in both_logits))
        return [
            {signal: score for signal, score in zip(SIGNALS, row, strict=True) if signal in signals}
            for signals, row in zip(used, table.tolist(), strict=True)
        ]
