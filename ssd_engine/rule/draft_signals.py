"""DraftSignals: what signals are read from a draft with, kept in a file beside the draft's adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ssd_engine.config import Signal
from ssd_engine.errors import InvalidRequestError, ModelLoadError

if TYPE_CHECKING:
    from torch import Tensor

FILE = "signals.safetensors"
_FORMAT = "1"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A linear probe on a draft's hidden states, and the threshold that it was found to need.

    Raises:
        ModelLoadError: a part that cannot be one's.
    """

    layer: int
    """The decoder layer whose output is read (the residual stream, before any final norm), counted from 1."""
    weight: Tensor
    """[H] float32."""
    bias: float
    threshold: float
    """Of the score, in [0, 1]."""
    false_alarm_rate: float
    """The share of harmless places, in [0, 1], that are past the threshold."""

    def __post_init__(self) -> None:
        if self.layer < 1:
            raise ModelLoadError(f"a probe has layer={self.layer}; give one, counted from 1")
        if self.weight.dim() != 1 or not bool(self.weight.isfinite().all()):
            shape = list(self.weight.shape)
            raise ModelLoadError(f"a probe has a weight of shape {shape}; give one finite number a hidden dimension")
        for name in ("threshold", "false_alarm_rate"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ModelLoadError(f"a probe has {name}={value}; give a number from 0 to 1")

    def scores(self, hidden: Tensor) -> Tensor:
        """[P] float32 scores of the states `hidden` [P, H], of any float type."""
        return (hidden.float() @ self.weight.to(hidden.device).float() + self.bias).sigmoid()


@dataclass(frozen=True, kw_only=True)
class DraftSignals:
    """What signals are read from one draft with."""

    refusal_ids: tuple[int, ...] = ()
    """Tokens that begin a refusal, those that break a text off for one included."""
    break_ids: tuple[int, ...] = ()
    """Those that break a text off; none: it is not known which do."""
    probe: Probe | None = None
    fingerprint: str | None = None
    """Of the model that these were made for, as an adapter's; None: they are taken to fit."""

    @property
    def available(self) -> frozenset[Signal]:
        """The signals that can be used."""
        found: dict[Signal, bool] = {
            "refusal_mass": bool(self.refusal_ids),
            "probe": self.probe is not None,
            "kl": True,
        }
        return frozenset(signal for signal, is_there in found.items() if is_there)

    def require_fit(self, *, hidden_size: int, num_layers: int, vocabulary_size: int, fingerprint: str | None) -> None:
        """Raise `ModelLoadError` where these are not of a draft of that kind; `fingerprint` None: it is not known."""
        unknown = next((i for i in (*self.refusal_ids, *self.break_ids) if not 0 <= i < vocabulary_size), None)
        wrong: str | None = None
        if unknown is not None:
            wrong = f"token id {unknown} begins a refusal in them, and the pair has {vocabulary_size} tokens"
        elif self.probe is not None and len(self.probe.weight) != hidden_size:
            wrong = f"the probe reads states of {len(self.probe.weight)} numbers, and the draft's have {hidden_size}"
        elif self.probe is not None and self.probe.layer > num_layers:
            wrong = f"the probe reads layer {self.probe.layer}, and the draft has {num_layers}"
        elif None not in (fingerprint, self.fingerprint) and fingerprint != self.fingerprint:
            wrong = f"they were made for weights with the mark {self.fingerprint}, and the draft's is {fingerprint}"
        if wrong is not None:
            raise ModelLoadError(
                f"the signals are not of this draft: {wrong}; use the draft that they were made for, or make them for "
                "this one with ssd align"
            )

    def require(self, signals: Iterable[Signal]) -> None:
        """Raise `InvalidRequestError` where one of `signals` cannot be used."""
        missing = sorted(set(signals) - self.available)
        if missing:
            raise InvalidRequestError(
                f"signals.{missing[0]}: the draft has no {FILE} that gives it; make one with ssd align, or leave "
                f"{' and '.join(missing)} out"
            )

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a folder's `FILE`.

        Raises:
            ModelLoadError: there is none, or it is damaged or of another format.
        """
        from safetensors import SafetensorError, safe_open  # with torch it takes a second, which a client need not wait

        path = Path(folder) / FILE
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                about = file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise ModelLoadError(
                f"signals {str(path)!r} cannot be read: {error}; make them anew with ssd align"
            ) from error
        try:
            return cls._of(tensors, about)
        except (KeyError, ValueError, RuntimeError, ModelLoadError) as error:
            raise ModelLoadError(
                f"signals {str(path)!r} are not what this version reads ({_reason(error)}); make them anew with ssd "
                "align"
            ) from error

    @classmethod
    def _of(cls, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> Self:
        if about.get("format") != _FORMAT:
            raise ValueError(f"format {about.get('format')!r}, not {_FORMAT!r}")
        probe = None
        if "probe.weight" in tensors:
            probe = Probe(
                layer=int(about["layer"]),
                weight=tensors["probe.weight"].float(),
                bias=float(tensors["probe.bias"]),
                threshold=float(about["threshold"]),
                false_alarm_rate=float(about["false_alarm_rate"]),
            )
        refusal_ids = tuple(map(int, tensors["refusal_ids"].tolist()))
        break_ids = (
            tuple(map(int, tensors["break_ids"].tolist())) if "break_ids" in tensors else ()
        )  # older ones lack it
        return cls(refusal_ids=refusal_ids, break_ids=break_ids, probe=probe, fingerprint=about.get("fingerprint"))

    def save(self, folder: str | Path) -> Path:
        """Write the file into a folder; returns where it is."""
        import torch
        from safetensors.torch import save_file

        ids = {"refusal_ids": self.refusal_ids, "break_ids": self.break_ids}
        tensors = {name: torch.tensor(token_ids, dtype=torch.int64) for name, token_ids in ids.items()}
        about: dict[str, Any] = {"format": _FORMAT}
        if self.fingerprint is not None:
            about["fingerprint"] = self.fingerprint
        if self.probe is not None:
            tensors["probe.weight"] = self.probe.weight.detach().to("cpu", torch.float32).contiguous()
            tensors["probe.bias"] = torch.tensor(self.probe.bias, dtype=torch.float32)
            about |= {name: getattr(self.probe, name) for name in ("layer", "threshold", "false_alarm_rate")}
        path = Path(folder) / FILE
        save_file(tensors, path, metadata={name: str(value) for name, value in about.items()})
        return path


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)
