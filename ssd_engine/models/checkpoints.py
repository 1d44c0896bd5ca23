"""Loading models and tokenizers: hub id, folder or GGUF file; safetensors and GGUF only, no remote code."""

from __future__ import annotations

import filecmp
import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from ssd_engine.bridge.between import first_difference
from ssd_engine.errors import ModelLoadError, VocabularyMismatchError
from ssd_engine.models.int8_copy import Int8Copy
from ssd_engine.models.linear import (
    HalfLinear,
    Int8Linear,
    PackedLinear,
    compute_in_float32,
    holds_matrices_in_linears,
    own_memory,
    replace_linears,
)
from ssd_engine.models.memory import require_room
from ssd_engine.models.pair import NO_ADAPTER, PairSpec
from ssd_engine.rule.draft_signals import FILE as SIGNALS_FILE
from ssd_engine.rule.draft_signals import DraftSignals

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
QUANTIZATIONS = ("auto", "int8", "none")
_MARKED = 256
"""Rows of the embeddings that a fingerprint is of."""
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
)
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
"""What the names of the embeddings end in, in files of weights."""
BASE_RECORD = "base.json"
"""In an adapter's folder: the name and `fingerprint` of the model that it was made for."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How one model is loaded."""

    dtype: str | torch.dtype = "auto"
    """"auto" is the checkpoint's own."""
    device: str = "auto"
    """"auto" is the first accelerator, or the CPU where there is none."""
    device_map: str | dict[str, Any] | None = None
    """As transformers takes it; overrides `device`."""
    quantization: str | None = None
    """"int8", on the CPU; "auto": int8 there, where no `dtype` is asked for; None or "none": as the weights are."""
    revision: str | None = None
    """Branch, tag or commit of the hub's repository; None: its main branch."""

    @classmethod
    def of(cls, spec: PairSpec) -> tuple[LoadOptions, LoadOptions]:
        """How a pair's target and draft are loaded."""
        target, draft = (
            cls(
                dtype=spec.dtype or "auto",
                device=spec.device or "auto",
                device_map=spec.device_map,
                quantization=quantization,
                revision=revision,
            )
            for quantization, revision in zip(
                spec.quantizations, (spec.target_revision, spec.draft_revision), strict=True
            )
        )
        return target, draft

    def __post_init__(self) -> None:
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            raise ModelLoadError(f"quantization={self.quantization!r} is unknown; use None or one of {QUANTIZATIONS}")

    @property
    def is_int8(self) -> bool:
        """Whether linear layers are to be held as int8."""
        if self.quantization == "auto":
            return self.dtype == "auto" and self.placement_type == "cpu"
        return self.quantization == "int8"

    @property
    def placement(self) -> str | dict[str, Any]:
        """Where the weights go, as transformers takes it."""
        if self.device_map is not None:
            return self.device_map
        if self.device != "auto":
            return self.device
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return str(accelerator) if accelerator else "cpu"

    @property
    def placement_type(self) -> str | None:
        """The kind of device that the weights go to; None where `device_map` spreads them."""
        return self.placement.partition(":")[0] if isinstance(self.placement, str) else None


def load_model(source: str | Path, options: LoadOptions, adapter: str | Path | None = None) -> PreTrainedModel:
    """Load a causal language model, with a PEFT adapter merged into it if one is given (`NO_ADAPTER` is none).

    Raises:
        ModelLoadError: the source cannot be found or reached, or holds pickled weights or remote code.
    """
    copy = Int8Copy.of(source, adapter) if options.is_int8 else None
    load = partial(load_unprepared, source, options, adapter)
    model = load() if copy is None else copy.load(load)
    model.requires_grad_(requires_grad=False)
    _prepare_linears(model, options)
    return model


def load_unprepared(
    source: str | Path, options: LoadOptions = LoadOptions(), adapter: str | Path | None = None
) -> PreTrainedModel:
    """`load_model` with transformers' own layers, which can be trained and saved; not quantized."""
    refuse_pickled(Path(source))
    if options.device_map is None:
        require_room([source], str(options.placement))
    with _bars_on_terminals_alone():
        model: PreTrainedModel = _from_pretrained(
            AutoModelForCausalLM,
            source,
            options.revision,
            dtype="auto" if options.dtype == "auto" else as_dtype(options.dtype),
            device_map=options.placement,
            use_safetensors=True,
        )
    return model if adapter in (None, NO_ADAPTER) else _merge_adapter(model, adapter)


@contextmanager
def _bars_on_terminals_alone() -> Iterator[None]:
    """Transformers' own bars, where they are shown at all, leave pipes and files alone."""
    previous = logging.set_tqdm_hook(lambda make, args, options: make(*args, **{"disable": None, **options}))
    try:
        yield
    finally:
        logging.set_tqdm_hook(previous)


def load_tokenizer(source: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer that belongs to a model."""
    tokenizer: PreTrainedTokenizerBase = _from_pretrained(AutoTokenizer, source, revision)
    return tokenizer


def load_tokenizers(spec: PairSpec) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
    """Load the tokenizers of a pair, given by its sources: one alone where both models have the same files."""
    target, draft = str(spec.target), str(spec.draft)
    tokenizer = load_tokenizer(target, spec.target_revision)
    if _have_one_tokenizer(Path(target), Path(draft)):
        return tokenizer, tokenizer
    return tokenizer, load_tokenizer(draft, spec.draft_revision)


def _have_one_tokenizer(folder: Path, other: Path) -> bool:
    """Whether two folders have a tokenizer in one file, and everything else that belongs to it, alike."""
    for name in _TOKENIZER_FILES:
        files = folder / name, other / name
        there = [file.is_file() for file in files]
        if there != [there[0]] * 2 or (there[0] and not filecmp.cmp(*files, shallow=False)):
            return False
    return (folder / _TOKENIZER_FILES[0]).is_file()


def load_config(source: str | Path, revision: str | None = None) -> PreTrainedConfig:
    """Load a model's configuration."""
    config: PreTrainedConfig = _from_pretrained(AutoConfig, source, revision)
    return config


def require_same_tokens(
    tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, size: int, needed_by: str
) -> None:
    """Raise `VocabularyMismatchError` where an id below `size` is two different tokens; `needed_by`: who minds."""
    token_id = first_difference(tokenizer, other, size)
    if token_id is not None:
        ours, theirs = (t.convert_ids_to_tokens(token_id) for t in (tokenizer, other))
        raise VocabularyMismatchError(
            f"target and draft do not share a vocabulary: token id {token_id} is {ours!r} for the target and "
            f"{theirs!r} for the draft, and {needed_by} needs one; the transformers backend bridges two, or use a "
            "draft of the target's own model family"
        )


def shared_vocabulary_size(target: PreTrainedModel, draft: PreTrainedModel) -> int:
    """Ids below it are tokens of both models; embedding matrices may be padded beyond them."""
    return min(int(model.config.get_text_config().vocab_size) for model in (target, draft))


def _from_pretrained(auto_class: Any, source: str | Path, revision: str | None = None, **options: Any) -> Any:
    path = Path(source)
    if revision is not None:
        if path.exists():
            raise ModelLoadError(f"{str(source)!r} is on this machine and has no revision {revision!r}; leave it out")
        options["revision"] = revision
    if path.suffix == ".gguf":
        source, options["gguf_file"] = path.parent, path.name
        if not path.is_file():
            raise ModelLoadError(f"GGUF file {str(path)!r} does not exist; check the path")
    try:
        return auto_class.from_pretrained(str(source), trust_remote_code=False, **options)
    except ImportError as error:
        raise ModelLoadError(f"{str(source)!r} needs a package that is not installed: {error}") from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelLoadError(
            f"model {str(source)!r} could not be loaded: {_first_line(error)} "
            "Give a model hub id that can be reached, a folder with safetensors weights, or a .gguf file."
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def refuse_pickled(folder: Path) -> None:
    """Raise `ModelLoadError` for a folder whose weights can run code."""
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickled = sorted(file.name for pattern in _PICKLED for file in folder.glob(pattern))
    if pickled:
        raise ModelLoadError(
            f"{str(folder)!r} holds pickled weights ({pickled[0]}), which can run code when they are read; "
            "save the model as safetensors"
        )


def _merge_adapter(model: PreTrainedModel, adapter: str | Path) -> PreTrainedModel:
    from peft import PeftModel  # takes seconds to import

    folder = Path(adapter)
    if not folder.is_dir():
        folder = _download_adapter(str(adapter))
    refuse_pickled(folder)
    require_base(folder, fingerprint(model))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks for what transformers is about to rename
            merged: PreTrainedModel = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelLoadError(f"adapter {str(adapter)!r} does not fit the draft: {_first_line(error)}") from error
    return merged


def fingerprint(model: PreTrainedModel) -> str:
    """A mark of a model's weights, which is the same in whatever type they were loaded: of its first embeddings."""
    return _mark(model.get_input_embeddings().weight[:_MARKED])


def stored_fingerprint(folder: str | Path) -> str | None:
    """The `fingerprint` of a model in a folder, from its file; None where its embeddings are not found there."""
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            name = next((name for name in file.keys() if name.endswith(_EMBEDDINGS)), None)  # noqa: SIM118
            if name is not None:
                return _mark(file.get_slice(name)[:_MARKED])
    return None


def _mark(embeddings: Tensor) -> str:
    rows = embeddings.detach().to("cpu", torch.bfloat16)
    return hashlib.sha256(rows.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def require_signals(model: PreTrainedModel, signals: DraftSignals, vocabulary_size: int) -> None:
    """Raise `ModelLoadError` where `signals` were not made for a draft, which shares so many tokens with its target."""
    config = model.config.get_text_config()
    signals.require_fit(
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        vocabulary_size=vocabulary_size,
        fingerprint=fingerprint(model),
    )


def load_signals(draft: str | Path, adapter: str | Path | None) -> DraftSignals:
    """What lies beside an adapter, or in the folder of a draft that has one merged into it, to read signals with.

    Nothing where there is no such file. Raises `ModelLoadError` where there is one that cannot be used.
    """
    source = draft if adapter in (None, NO_ADAPTER) else adapter
    folder = Path(source)
    if not folder.is_dir() and source is adapter:
        folder = _download_adapter(str(adapter))
    return DraftSignals.load(folder) if (folder / SIGNALS_FILE).is_file() else DraftSignals()


def require_base(adapter: Path, mark: str | None) -> None:
    """Raise `ModelLoadError` where an adapter says that it was made for weights with another `fingerprint` than `mark`.

    One of other makers says nothing.
    """
    record = adapter / BASE_RECORD
    if record.is_file():
        base = json.loads(record.read_text(encoding="utf-8"))
        if mark is not None and base["fingerprint"] != mark:
            raise ModelLoadError(
                f"adapter {str(adapter)!r} was made for {base['name']}, and this draft has other weights; use that "
                "draft, or make an adapter for this one with ssd align"
            )


def _download_adapter(repo_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repo_id, allow_patterns=["adapter_config.json", "adapter_model.safetensors", BASE_RECORD, SIGNALS_FILE]
            )
        )
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"adapter {repo_id!r} could not be fetched: {_first_line(error)}") from error


def _prepare_linears(model: PreTrainedModel, options: LoadOptions) -> None:
    devices = {parameter.device.type for parameter in model.parameters()}
    layer = packed_layer(" and ".join(sorted(devices)), model.dtype, is_int8=options.is_int8)
    if layer is None or (layer is HalfLinear and not _fits_half(model)):
        return
    own_memory(model)
    replace_linears(model, layer)
    if layer is not PackedLinear:
        compute_in_float32(model)


def packed_layer(
    device: str, dtype: torch.dtype, *, is_int8: bool
) -> type[PackedLinear | HalfLinear | Int8Linear] | None:
    """What takes the place of a model's linear layers on that kind of device; None: they stay as they are.

    A model with weights that float16 cannot hold keeps its layers where `HalfLinear` is said.
    """
    if is_int8:
        if device != "cpu":
            raise ModelLoadError(f"int8 runs on the CPU, but the model is on {device}; use device='cpu'")
        return Int8Linear
    if device != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return None
    if dtype == torch.bfloat16 and PackedLinear.is_available():
        return PackedLinear
    return HalfLinear if HalfLinear.is_available() else None


def _fits_half(model: PreTrainedModel) -> bool:
    """Whether this model's weights suit `HalfLinear`."""
    return holds_matrices_in_linears(model) and all(
        float(parameter.abs().max()) <= torch.finfo(torch.float16).max for parameter in model.parameters()
    )


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A dtype by its name. An unknown name raises `ModelLoadError`."""
    if isinstance(dtype, torch.dtype):
        return dtype
    resolved = getattr(torch, dtype, None)
    if not isinstance(resolved, torch.dtype):
        raise ModelLoadError(f'dtype={dtype!r} is unknown; use "auto", "float32", "bfloat16" or "float16"')
    return resolved
