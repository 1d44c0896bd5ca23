"""The options that say which pair a command loads, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ssd_engine.cli.console import Stages, stderr
from ssd_engine.config import SignalConfig, SSDConfig
from ssd_engine.errors import InvalidRequestError
from ssd_engine.models.presets import DEFAULT_PRESET, PRESETS, default_preset, get_preset, model_id

if TYPE_CHECKING:
    from ssd_engine.alignment.align import PairSource
    from ssd_engine.engine import SSDEngine
    from ssd_engine.evaluation.answering import PairOptions
    from ssd_engine.evaluation.contenders import Pair

Quantization = Literal["int8"]


def _known_preset(name: str | None) -> str | None:
    if name is not None and name not in PRESETS:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(PRESETS)}")
    return name


_PANEL: Any = {"rich_help_panel": "Models"}
_PRESET_HELP = f"A named pair (ssd models list).  [default: SSD_PRESET, or {DEFAULT_PRESET}]"
PresetOption = Annotated[str | None, typer.Option(help=_PRESET_HELP, callback=_known_preset, **_PANEL)]
TargetOption = Annotated[str | None, typer.Option(help="Large model: hub id, folder or GGUF file.", **_PANEL)]
DraftOption = Annotated[str | None, typer.Option(help="Small safe model of the same vocabulary.", **_PANEL)]
_ADAPTER_HELP = "PEFT adapter to merge into the draft; 'none' for none.  [default: the preset's, if it has one]"
DraftAdapterOption = Annotated[str | None, typer.Option(help=_ADAPTER_HELP, **_PANEL)]
TargetQuantizationOption = Annotated[Quantization | None, typer.Option(help="Quantize the target.", **_PANEL)]
DraftQuantizationOption = Annotated[Quantization | None, typer.Option(help="Quantize the draft.", **_PANEL)]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Decode through torch.compile: faster, ready a minute later.", **_PANEL)
]
NumDraftTokensOption = Annotated[
    int | None, typer.Option(min=1, max=64, help="Tokens drafted in a round.  [default: the preset's]", **_PANEL)
]
SignalOption = Annotated[
    list[str] | None,
    typer.Option(
        "--signal",
        metavar="NAME=THRESHOLD",
        help="What else calls for Union: refusal_mass=, probe= or kl= a number from 0 to 1, hold= tokens, smoothing= "
        "places; repeatable. 'none' for none.  [default: the preset's]",
        **_PANEL,
    ),
]
DraftSystemPromptOption = Annotated[str | None, typer.Option(help="System prompt for the draft alone.", **_PANEL)]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Which pair to load; without a preset and without models, the default preset."""

    preset: str | None = None
    target: str | None = None
    draft: str | None = None
    draft_adapter: str | None = None
    target_quantization: Quantization | None = None
    draft_quantization: Quantization | None = None
    draft_system_prompt: str | None = None
    num_draft_tokens: int | None = None
    signals: Sequence[str] | None = None
    """`name=threshold` of each, or "none"."""
    compile: bool = False

    def __post_init__(self) -> None:
        if (self.target is None) != (self.draft is None):
            raise typer.BadParameter("--target and --draft name one pair: give both, or neither")
        if self.preset and self.target:
            raise typer.BadParameter("--preset and --target both name a pair: give one of them")

    def load(self) -> SSDEngine:
        """Load the pair; the weights of a preset are fetched on first use, with progress bars."""
        from ssd_engine.engine import SSDEngine
        from ssd_engine.models.resolve import resolve_pair

        _silence_transformers()
        options: dict[str, Any] = {
            "draft_adapter": self.draft_adapter,
            "target_quantization": self.target_quantization,
            "draft_quantization": self.draft_quantization,
            "compile": self.compile,
        }
        loading = "Loading and compiling the models, a minute or more" if self.compile else "Loading the models"
        if self.target is not None and self.draft is not None:
            with stderr.status(loading):
                return SSDEngine.from_pretrained(self.target, self.draft, config=self._config(SSDConfig()), **options)
        preset = get_preset(self.preset or default_preset())
        with Stages() as stages:
            resolve_pair(preset, stages)
        config = self._config(preset.config_for(self.draft_adapter))
        with stderr.status(loading):
            return SSDEngine.from_preset(preset.name, config=config, **options)

    def resolve(self) -> Pair:
        """What the pair's models are loaded from, fetched first where they are a preset's."""
        from ssd_engine.evaluation.contenders import Pair
        from ssd_engine.models.resolve import resolve_pair

        _silence_transformers()
        target_name, draft_name = self._names()
        if self.target is not None and self.draft is not None:
            target, draft, adapter, config = self.target, self.draft, self.draft_adapter, SSDConfig()
        else:
            preset = get_preset(self.preset or default_preset())
            adapter, config = self.draft_adapter or preset.draft_adapter, preset.config_for(self.draft_adapter)
            with Stages() as stages:
                target, draft = resolve_pair(preset, stages)
        return Pair(
            target=target,
            draft=draft,
            target_name=target_name,
            draft_name=draft_name,
            draft_adapter=adapter,
            config=self._config(config),
            compile=self.compile,
        )

    def pair_source(self, quantization: Quantization | None, start: str | None) -> PairSource:
        """The pair as an alignment takes it: its folders or ids, what its models are called, and the adapter to go on
        from, which "preset" says is the preset's own."""
        from ssd_engine.alignment.align import PairSource

        pair = self.resolve()
        if start == "preset" and pair.draft_adapter is None:
            raise typer.BadParameter("--start preset: the pair comes with no adapter; give a folder, or leave it out")
        return PairSource(
            target=pair.target,
            draft=pair.draft,
            target_name=pair.target_name,
            draft_name=pair.draft_name,
            quantization=quantization,
            draft_adapter=pair.draft_adapter if start == "preset" else start,
        )

    def evaluated_pair(self, quantization: Quantization | None) -> PairOptions:
        """The pair as an evaluation takes it."""
        from ssd_engine.evaluation.answering import PairOptions

        pair = self.resolve()
        return PairOptions(
            target=pair.target,
            draft=pair.draft,
            name=" + ".join(name.rsplit("/", 1)[-1] for name in (pair.target_name, pair.draft_name)),
            draft_adapter=pair.draft_adapter,
            quantization=quantization,
            config=pair.config,
        )

    def _names(self) -> tuple[str, str]:
        """What target and draft are called, wherever they lie."""
        if self.target is not None and self.draft is not None:
            target, draft = (Path(name).name if Path(name).exists() else name for name in (self.target, self.draft))
            return target, draft
        preset = get_preset(self.preset or default_preset())
        return model_id(preset.target), model_id(preset.draft)

    def _config(self, base: SSDConfig) -> SSDConfig:
        given = {"draft_system_prompt": self.draft_system_prompt, "num_draft_tokens": self.num_draft_tokens}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if self.signals:
            changes["signals"] = _signals(self.signals)
        return base.replaced(**changes)


def _signals(given: Sequence[str]) -> SignalConfig | None:
    if list(given) == ["none"]:
        return None
    parts = dict(part.partition("=")[::2] for part in given)
    try:
        return SignalConfig(**parts)
    except InvalidRequestError as error:
        raise typer.BadParameter(f"--signal {' --signal '.join(given)}: {error}") from error


def _silence_transformers() -> None:
    """transformers' own bars and warnings would run into the answer."""
    import warnings

    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
