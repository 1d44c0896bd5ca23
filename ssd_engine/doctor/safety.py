"""What a draft has of safety: its adapter, and what signals are read with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedConfig

from ssd_engine.config import Signal
from ssd_engine.errors import SSDError
from ssd_engine.models.checkpoints import load_signals, require_base, stored_fingerprint
from ssd_engine.models.hub import is_repository
from ssd_engine.models.pair import NO_ADAPTER, PairSpec
from ssd_engine.rule.draft_signals import DraftSignals


@dataclass(frozen=True, kw_only=True)
class DraftSafety:
    """A draft's adapter and signals."""

    adapter: str | None
    """None: the draft is as its makers published it."""
    signals: list[Signal]
    """Those that can be read; empty where the adapter is not on this machine."""
    used_signals: list[Signal]
    """By the settings."""


def draft_safety(
    spec: PairSpec, draft: str | None, config: PreTrainedConfig | None, problems: list[str]
) -> DraftSafety:
    """Look at a draft's adapter and signals.

    Args:
        spec: the pair.
        draft: where the draft is, if it is on this machine.
        config: its configuration, if it can be read.
        problems: what cannot be used is added to it.
    """
    adapter = spec.draft_adapter or (spec.safe_draft.adapter if spec.safe_draft else None)
    adapter = None if adapter == NO_ADAPTER else adapter
    used = spec.settings.signals.thresholds if spec.settings.signals is not None else {}
    signals = None
    try:
        signals = _signals(adapter, draft, config)
        if signals is not None:
            signals.require(used)
    except SSDError as error:
        problems.append(str(error))
    available = [] if signals is None else sorted(signals.available)
    return DraftSafety(adapter=adapter, signals=available, used_signals=sorted(used))


def _signals(adapter: str | None, draft: str | None, config: PreTrainedConfig | None) -> DraftSignals | None:
    """Checked against the draft; None where they are not on this machine. Raises `SSDError`."""
    folder = adapter or draft
    if folder is None:
        return None
    if not Path(folder).is_dir():
        if adapter is not None and not is_repository(adapter):
            raise SSDError(f"draft_adapter={adapter!r} does not exist; give its folder or hub id, or 'none'")
        return None if adapter is not None else DraftSignals()
    mark = stored_fingerprint(draft) if draft is not None else None
    if adapter is not None:
        require_base(Path(adapter), mark)
    signals = load_signals(str(draft), adapter)
    if config is not None:
        text = config.get_text_config()
        signals.require_fit(
            hidden_size=text.hidden_size,
            num_layers=text.num_hidden_layers,
            vocabulary_size=text.vocab_size,
            fingerprint=mark,
        )
    return signals
