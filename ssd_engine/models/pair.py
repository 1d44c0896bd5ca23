"""PairSpec: which two models, and how they are loaded and run. Every surface fills in this one description."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, Field, field_validator, model_validator

from ssd_engine.config import Backend, Settings, SignalConfig, SSDConfig
from ssd_engine.models.presets import SAFE_DRAFTS, Preset, SafeDraft, default_preset, get_preset, model_id, title

NO_ADAPTER = "none"
"""In an adapter's place: the model as it is, even where it would get one by default."""


def _only(backend: Backend) -> dict[str, Any]:
    """The mark of a field that only one backend has a use for."""
    return {"backend": backend}


def backend_of(field_name: str) -> Backend | None:
    """The one backend that has a use for an option; None: both have."""
    extra = PairSpec.model_fields[field_name].json_schema_extra
    return extra.get("backend") if isinstance(extra, dict) else None  # type: ignore[return-value]


class PairOptions(BaseModel):
    """How a pair is loaded and run. None leaves a field to the preset, the checkpoint or the backend.

    These are options of `SSDEngine.from_pretrained` and `from_preset`, fields of `ChatSSD` and `SSDLLM`, and options of
    the commands: a field that is added here is added everywhere (tests/test_pair_surfaces.py). What it does, it does
    where it is read: `LoadOptions.of` (both models of this process), `transformers_parts`, `VllmPair.of`. In a
    description, what follows " None: " is shown as the default.
    """

    preset: str | None = Field(None, description="A named pair (ssd models list).")
    draft: str | None = Field(
        None,
        description="Draft, the small safe model: hub id, folder or GGUF file; or 'qwen2.5-coder-0.5b-safe', the "
        "default pair's with its adapter, for any target.",
    )
    draft_adapter: str | None = Field(
        None,
        description="PEFT adapter to merge into the draft; 'none' for none. None: the preset's, if it has one.",
    )
    target_revision: str | None = Field(None, description="Branch, tag or commit of the target's repository.")
    draft_revision: str | None = Field(None, description="Branch, tag or commit of the draft's repository.")
    dtype: str | None = Field(
        None, description="Type of the weights: float32, bfloat16 or float16. None: the checkpoint's own."
    )
    device: str | None = Field(
        None,
        description="Where the models run, such as 'cpu' or 'cuda:1'. None: an accelerator if there is one.",
        json_schema_extra=_only("transformers"),
    )
    device_map: str | dict[str, Any] | None = Field(
        None, description="As transformers takes it; overrides device.", json_schema_extra=_only("transformers")
    )
    quantization: str | None = Field(
        None,
        description="'int8' for both models, on the CPU; 'auto': there alone; 'none': as the weights are. "
        "None: the preset's.",
        json_schema_extra=_only("transformers"),
    )
    target_quantization: str | None = Field(
        None, description="The same for the target alone.", json_schema_extra=_only("transformers")
    )
    draft_quantization: str | None = Field(
        None, description="The same for the draft alone.", json_schema_extra=_only("transformers")
    )
    compile: bool | None = Field(
        None, description="Decode through torch.compile: faster tokens, ready a minute later. None: no."
    )
    max_batch_size: int | None = Field(
        None, ge=1, description="Most requests that decode together. None: 8; with vLLM 64."
    )
    max_waiting: int | None = Field(None, ge=1, description="Most requests that wait for a place. None: 16,384.")
    kv_cache_bytes: int | None = Field(
        None, ge=1, description="Memory for the key-value caches of both models. None: what suits this machine."
    )
    prefix_cache_bytes: int | None = Field(
        None,
        ge=0,
        description="Most memory that each model's kept prompt prefixes take. None: 512 MiB.",
        json_schema_extra=_only("transformers"),
    )
    max_model_len: int | None = Field(
        None,
        ge=16,
        description="Most tokens, prompt and answer together. None: what models and caches have room for.",
        json_schema_extra=_only("vllm"),
    )
    tensor_parallel_size: int | None = Field(
        None,
        ge=1,
        description="Devices (on the CPU: processes) that share each layer. None: 1.",
        json_schema_extra=_only("vllm"),
    )
    engine_args: dict[str, Any] | None = Field(
        None, description="Further arguments of vLLM's EngineArgs.", json_schema_extra=_only("vllm")
    )
    backend: Backend | None = Field(
        None,
        description="'transformers' runs the models in this process; 'vllm' in vLLM's, with its paged caches, "
        "continuous batching and parallelism. None: transformers.",
    )
    num_draft_tokens: int | Literal["auto"] | None = Field(
        None, description="Tokens drafted in a round; 'auto' chooses what is fastest. None: the settings' own."
    )
    draft_system_prompt: str | None = Field(
        None, description="System prompt for the draft alone.", json_schema_extra=_only("transformers")
    )
    config: SSDConfig | None = Field(None, description="Settings of the algorithm. None: the preset's, or the paper's.")


class Sides(NamedTuple):
    """Something of each model."""

    target: str
    draft: str


class PairSpec(PairOptions, Settings):
    """A pair of models, and how it is loaded and run; without a preset and without models, the default preset.

    Immutable, and can be saved as JSON. An unusable value raises `InvalidRequestError`. What is loaded of it is up to
    `ssd_engine.loading`.
    """

    target: str | None = Field(None, description="Target, the large model: hub id, folder or GGUF file.")
    name: str | None = Field(None, description="What responses call the pair. None: what its models are called.")
    signals: SignalConfig | Literal["none"] | None = Field(
        None, description="Signals in the place of the settings' own; 'none' for none."
    )

    @field_validator("target", "draft", "draft_adapter", mode="before")
    @classmethod
    def _as_text(cls, source: Any) -> Any:
        return str(source) if isinstance(source, Path) else source

    @field_validator("dtype", "device", mode="before")
    @classmethod
    def _without_auto(cls, value: Any) -> Any:
        """None where "auto" is said; the name of a torch dtype."""
        name = str(value).removeprefix("torch.") if type(value).__module__ == "torch" else value
        return None if name == "auto" else name

    @model_validator(mode="after")
    def _one_pair(self) -> PairSpec:
        if (self.target is None) != (self.draft is None):
            raise ValueError(
                f"target={self.target!r} and draft={self.draft!r}: give both models of the pair (draft="
                f"{next(iter(SAFE_DRAFTS))!r} guards any target), or neither"
            )
        if self.preset is not None and self.target is not None:
            raise ValueError(f"preset={self.preset!r} and target={self.target!r} both name a pair; give one of them")
        if self.target is None and (self.target_revision or self.draft_revision):
            raise ValueError("a preset has its revisions; target_revision and draft_revision go with target and draft")
        return self

    @model_validator(mode="after")
    def _has_backend(self) -> PairSpec:
        """Nothing is given that the backend would pass over."""
        for name in type(self).model_fields:
            needed, backend = backend_of(name), self.backend or "transformers"
            if needed not in (None, backend) and getattr(self, name) is not None:
                raise ValueError(f"{name}: not with backend={backend!r}; leave it out, or use {needed!r}")
        return self

    @property
    def named_preset(self) -> Preset | None:
        """The preset that is meant; None: the models are given. An unknown name raises `ModelLoadError`."""
        return None if self.target is not None else get_preset(self.preset or default_preset())

    @property
    def safe_draft(self) -> SafeDraft | None:
        """The draft that the package has an adapter for, if the preset's is one, or one is named."""
        preset = self.named_preset
        return SAFE_DRAFTS.get(str(self.draft)) if preset is None else preset.safe_draft

    @property
    def names(self) -> Sides:
        """What target and draft are called, wherever they lie: hub ids, or the names of folders."""
        preset = self.named_preset
        if preset is not None:
            return Sides(model_id(preset.target), model_id(preset.draft))
        target, draft = (
            Path(name).name if Path(name).exists() else name for name in map(str, (self.target, self.draft))
        )
        return Sides(target, draft if self.safe_draft is None else model_id(self.safe_draft.source))

    @property
    def title(self) -> str:
        """`name`, or what the models are called, without the organisations that hub ids begin with."""
        if self.name is not None:
            return self.name
        preset = self.named_preset
        if preset is not None:
            return f"{title(preset.target)} + {title(preset.draft)}"
        draft = Path(str(self.draft)).stem if self.safe_draft is None else title(self.safe_draft.source)
        return f"{Path(str(self.target)).stem} + {draft}"

    @property
    def context_length(self) -> int | None:
        """Most tokens of prompt and answer, as far as it is known before anything is loaded."""
        preset, safe_draft = self.named_preset, self.safe_draft
        lengths: list[int | None]
        if preset is not None:
            lengths = [preset.context_length]
        else:
            of_draft = safe_draft.context_length if safe_draft else _stored_context_length(str(self.draft))
            lengths = [_stored_context_length(str(self.target)), of_draft]
        known = [length for length in (*lengths, self.max_model_len) if length is not None]
        return None if None in lengths else min(known)

    @property
    def quantizations(self) -> tuple[str | None, str | None]:
        """Of target and draft, as they were asked for, or the preset's."""
        preset = self.named_preset
        if preset is not None:
            own = preset.quantization, preset.quantization
        else:  # a draft of the package's was aligned as int8, which is how it runs on a CPU
            own = None, "auto" if self.safe_draft is not None and self.backend != "vllm" else None
        target, draft = (self.quantization or each for each in own)
        return self.target_quantization or target, self.draft_quantization or draft

    @property
    def settings(self) -> SSDConfig:
        """Settings of the algorithm: those given, or the preset's, with the changes that other fields ask for."""
        own = self._own_settings()
        if self.backend == "vllm" and own.num_draft_tokens == "auto":  # vLLM drafts a fixed number
            own = own.replaced(num_draft_tokens=SSDConfig().num_draft_tokens)
        given = {"num_draft_tokens": self.num_draft_tokens, "draft_system_prompt": self.draft_system_prompt}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if self.signals is not None:
            changes["signals"] = None if self.signals == "none" else self.signals
        return (self.config or own).replaced(**changes)

    def _own_settings(self) -> SSDConfig:
        """Those that suit the pair."""
        preset = self.named_preset
        if self.safe_draft is not None and self.draft_adapter is None:
            return self.safe_draft.config
        return SSDConfig() if preset is None else preset.config


def _stored_context_length(folder: str) -> int | None:
    """What a model's folder says of it; None where it says nothing, or there is no such folder."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    length = {**config, **config.get("text_config", {})}.get("max_position_embeddings")
    return length if isinstance(length, int) else None
