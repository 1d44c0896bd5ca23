"""Int8Copy: a preset's model on disk with its linear layers as int8, so that an engine is ready in seconds.

What is kept is what `Int8Linear` would make of the weights at every start: reading them takes half the memory, and
leaves the tables of embeddings where they are, in the file, of which a pass reads a few rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from ssd_engine.errors import ModelLoadError
from ssd_engine.models.cache import MANIFEST, cache_folder, converted_models, locked, workspace
from ssd_engine.models.linear import int8_of
from ssd_engine.models.memory import require_room
from ssd_engine.models.pair import NO_ADAPTER
from ssd_engine.models.presets import SAFE_DRAFTS
from ssd_engine.models.progress import Stage, tqdm_stage

_logger = logging.getLogger(__name__)

_FORMAT = 1
"""Raised whenever a copy made by older code must not be used any more."""
_SHARD_BYTES = 200_000_000
_SCALES = ".scales"
"""What the name of a layer's scales ends in, where its weight's ends in ".weight"."""


class Int8Copy:
    """Where a model's copy is kept, and what it is made of."""

    def __init__(self, source: Path, adapter: Path | None) -> None:
        self._source = source
        name = source.name if adapter is None else f"{source.name}+{adapter.name}"
        self._folder = cache_folder() / "int8" / name
        self._made_of = {
            "format": _FORMAT,
            "model": (source / MANIFEST).read_text(encoding="utf-8"),
            "adapter": None if adapter is None else _digest(adapter / "adapter_model.safetensors"),
        }

    @classmethod
    def of(cls, source: str | Path, adapter: str | Path | None) -> Int8Copy | None:
        """The copy of a model; None where none is kept: of models that are no preset's."""
        folder = Path(source)
        own = None if adapter is None or adapter == NO_ADAPTER else Path(adapter)
        shipped = {draft.adapter for draft in SAFE_DRAFTS.values()}
        if folder.parent != converted_models() or (own is not None and str(own) not in shipped):
            return None
        return cls(folder, own) if (folder / MANIFEST).is_file() else None

    def load(self, make: Callable[[], PreTrainedModel], stage: Stage = tqdm_stage) -> PreTrainedModel:
        """The model with int8 weights and their scales in its linear layers, which are to be packed.

        Args:
            make: gives the model as it is; it is asked where there is no copy yet.
            stage: shows what takes long.
        """
        if not self._is_there():
            try:
                with locked(self._folder, self._source.name, stage):
                    if not self._is_there():
                        with stage(f"Preparing {self._source.name} as int8 (once)", None):
                            self._write(make())
            except (ModelLoadError, OSError) as error:  # what `make` raises, it raises again
                _logger.warning("%s is quantized at every start: %s", self._source.name, error)
                return make()
        return self._read()

    def _is_there(self) -> bool:
        try:
            return bool(json.loads((self._folder / MANIFEST).read_text(encoding="utf-8")) == self._made_of)
        except (OSError, ValueError):
            return False

    def _write(self, model: PreTrainedModel) -> None:
        with workspace(self._folder) as work:
            made = work / "model"
            made.mkdir()
            for number, shard in enumerate(_shards(model), 1):
                save_file(shard, made / f"model-{number:05}.safetensors", metadata={"format": "pt"})
            (made / MANIFEST).write_text(json.dumps(self._made_of), encoding="utf-8")
            shutil.rmtree(self._folder, ignore_errors=True)
            made.replace(self._folder)

    def _read(self) -> PreTrainedModel:
        require_room([self._folder], "cpu")
        config = AutoConfig.from_pretrained(self._source)
        with init_empty_weights(include_buffers=False):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=config.dtype)
        model.generation_config = GenerationConfig.from_pretrained(self._source)
        table = model.get_input_embeddings()
        for path in sorted(self._folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    tensor = file.get_tensor(name)
                    owner = model.get_submodule(name.rpartition(".")[0])
                    if name.endswith(_SCALES):
                        owner.scales = tensor.clone()
                    elif tensor.dtype is torch.int8:
                        owner.weight = nn.Parameter(tensor, requires_grad=False)
                    else:
                        # A view keeps the whole file in reach; the embeddings' has nothing else in it.
                        value = tensor if owner is table else tensor.clone()
                        set_module_tensor_to_device(model, name, "cpu", value=value)
        return model.eval()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shards(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """A model's tensors in files: the embeddings alone in theirs, linear weights as int8."""
    table = model.get_input_embeddings().weight
    linears = {f"{name}.weight": layer for name, layer in model.named_modules() if type(layer) is nn.Linear}
    shard: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tensors = {name: parameter.detach()}
        if name in linears:
            weight, scales = int8_of(linears[name])
            tensors = {name: weight, name.removesuffix(".weight") + _SCALES: scales}
        elif parameter is table:
            yield tensors
            continue
        shard.update(tensors)
        if sum(tensor.nbytes for tensor in shard.values()) > _SHARD_BYTES:
            yield shard
            shard = {}
    if shard:
        yield shard
