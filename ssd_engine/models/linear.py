"""Layers for CPU inference: weights packed for the matrix kernels, in 16 bits or as int8."""

from __future__ import annotations

import itertools
import os
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from ssd_engine.models.memory import return_freed_memory
from ssd_engine.models.merged import groups_of, merged

# Without VNNI the kernels add two products in 16 bits: activations of 7 bits keep that from overflowing.
_LEVELS = 127 if torch.cpu._is_vnni_supported() else 63
"""Activations from -1 to 1 become unsigned bytes from 0 to twice this."""
_LARGE = 2**23
"""Weights of layers after whose packing freed memory is given back."""
_TINY = torch.finfo(torch.float32).tiny


class _Packed(nn.Module, ABC):
    """A layer around a weight that only its own kernel can read, not `torch.compile`.

    Compiled code calls the kernel by the layer's number.
    """

    can_be_merged: ClassVar[bool] = True
    """Whether several layers as one product give what each of them gives alone, to the last bit."""
    keeps_rows_apart: ClassVar[bool] = True
    """Whether a row gives what it gives alone, to the last bit, however many there are."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self._out_features = out_features
        self._take_number()

    @abstractmethod
    def product(self, rows: Tensor) -> Tensor:
        """The kernel: [..., in] to [..., out], of the same dtype."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._take_number()  # a copy has its own

    def _take_number(self) -> None:
        # A tensor: a plain number would be a constant of compiled code, and every layer would be compiled by itself.
        self._number = torch.tensor(next(_numbers))
        _layers[int(self._number)] = self

    def forward(self, rows: Tensor) -> Tensor:
        return self._kernel(rows)

    def _kernel(self, rows: Tensor) -> Tensor:
        """`product`, also from compiled code."""
        if not torch.jit.is_scripting() and torch.compiler.is_compiling():  # type: ignore[attr-defined]
            result: Tensor = torch.ops.ssd_engine.product.default(rows, self._number, self._out_features)
            return result
        return self.product(rows)


def _shape_of_product(rows: Tensor, number: Tensor, out_features: int) -> Tensor:
    return rows.new_empty(*rows.shape[:-1], out_features)


_numbers = itertools.count()
_layers: weakref.WeakValueDictionary[int, _Packed] = weakref.WeakValueDictionary()
_LIBRARY = torch.library.Library("ssd_engine", "FRAGMENT")
_LIBRARY.define("product(Tensor rows, Tensor number, int out_features) -> Tensor")
_LIBRARY.impl("product", lambda rows, number, _: _layers[int(number)].product(rows), "CPU")
torch.library.register_fake("ssd_engine::product", _shape_of_product, lib=_LIBRARY)


class PackedLinear(_Packed):
    """A bfloat16 linear layer whose weight oneDNN has laid out once, instead of at every call.

    Same products and same sums as `nn.Linear`, at 1.3 to 2.5 times its speed for 1 to 8 rows.
    """

    # A wider product is divided otherwise, and one of more rows too: near ties of tokens would fall the other way.
    can_be_merged = False
    keeps_rows_apart = False

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.out_features)
        self._bias = None if linear.bias is None else linear.bias.detach()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def __getstate__(self) -> dict[str, Any]:
        """With the weight as it was before it was laid out: oneDNN's own form cannot be copied."""
        return {**self.__dict__, "_weight": self._weight.to_dense()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight)

    @staticmethod
    def is_available() -> bool:
        """Whether this processor multiplies bfloat16."""
        return torch._C._has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())

    def product(self, rows: Tensor) -> Tensor:
        """[R, out] of rows [R, in]."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, "none", [], "")
        return result


class HalfLinear(_Packed):
    """A linear layer with its weight packed as float16, which FBGEMM widens on the way to float32 arithmetic.

    For processors that do not multiply 16-bit floats themselves: reads half the memory of float32, and up to six rows
    cost hardly more than one.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.out_features)
        bias = None if linear.bias is None else linear.bias.detach().float()
        self._packed = torch.ops.quantized.linear_prepack_fp16(linear.weight.detach().float(), bias)

    @staticmethod
    def is_available() -> bool:
        """Whether this build of torch has the kernel."""
        return "fbgemm" in torch.backends.quantized.supported_engines

    def product(self, rows: Tensor) -> Tensor:
        """[R, out] of rows [R, in]."""
        result: Tensor = torch.ops.quantized.linear_dynamic_fp16(rows, self._packed)
        return result


class Int8Linear(_Packed):
    """A linear layer with an int8 weight, one scale an output, and activations quantised row by row as they come."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.out_features)
        self._levels, self._tiny = _LEVELS, _TINY  # TorchScript reads no globals
        weight, scales = int8_of(linear)
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        self._bias = None if linear.bias is None else linear.bias.detach().float()
        with warnings.catch_warnings():
            # torch 2.13 deprecates quantised tensors; the kernels of torch.ops.quantized take nothing else.
            warnings.filterwarnings("ignore", message=".*quantized tensor creation functions.*")
            quantized = torch._make_per_channel_quantized_tensor(weight, scales.double(), zeros, 0)
            self._packed = torch.ops.quantized.linear_prepack(quantized, None)

    def product(self, rows: Tensor) -> Tensor:
        """Of float32 rows with values from -1 to 1."""
        result: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            rows, 1 / self._levels, self._levels, self._packed
        )
        return result

    def forward(self, rows: Tensor) -> Tensor:
        """[..., out] of rows [..., in]."""
        # The kernel has one scale for all rows, and some models' first token has activations a thousand times the
        # others': every row is brought to the range of -1 to 1 first. So no row's result depends on the others.
        wide = rows.float()
        ranges = wide.abs().amax(dim=-1, keepdim=True).clamp_min_(self._tiny)
        result = self._kernel(wide / ranges).mul_(ranges)
        return (result if self._bias is None else result.add_(self._bias)).to(rows.dtype)


def int8_of(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """A layer's weight, [out, in] int8, and the scales of its outputs, [out] float32; a layer may hold just these."""
    weight = linear.weight.detach()
    if weight.dtype is torch.int8:
        return weight, cast(Tensor, linear.scales)
    lowest, highest = weight.aminmax(dim=1)
    scales = (torch.maximum(-lowest, highest).float() / 127).clamp_min(_TINY)
    return (weight.float() * (1 / scales)[:, None]).round_().to(torch.int8), scales


def own_memory(model: PreTrainedModel) -> None:
    """Copy what `replace_linears` leaves in a model just loaded.

    Its weights are views of mapped files, and one that stays would hold its whole file in memory. `Int8Copy` has seen
    to that.
    """
    replaced = {id(layer.weight): layer.weight for group in groups_of(model, merging=False) for _, layer in group}
    if any(weight.dtype is torch.int8 for weight in replaced.values()):
        return
    for parameter in model.parameters():
        if id(parameter) not in replaced:
            parameter.data = parameter.data.clone()


def replace_linears(model: PreTrainedModel, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Put `make(layer)` in the place of every `nn.Linear`, a few at a time: no two copies of the model exist.

    Layers that read the same rows are made one, where that changes nothing.
    """
    groups = list(groups_of(model, merging=getattr(make, "can_be_merged", False)))
    largest = max(groups, key=lambda group: sum(layer.weight.numel() for _, layer in group), default=None)
    # The largest one first, or one core would be left with it in the end. The others in their order, in which a model's
    # files are done with one after the other.
    groups.sort(key=lambda group: group is not largest)

    def made(group: list[tuple[str, nn.Linear]]) -> list[nn.Module]:
        return merged([layer for _, layer in group], make)

    # Packing a layer keeps one core busy.
    with ThreadPoolExecutor(os.cpu_count() or 1) as packing:
        done = zip(groups, packing.map(made, groups), strict=True)
        for group, layers in tqdm(done, desc="Packing weights", total=len(groups), disable=None):
            for (name, layer), packed in zip(group, layers, strict=True):
                _replace(model, name, packed)
                del layer.weight
            if sum(layer.in_features * layer.out_features for _, layer in group) > _LARGE:
                return_freed_memory()


def compute_in_float32(model: PreTrainedModel) -> None:
    """Make a 16-bit model compute in float32; `replace_linears` has seen to its linear layers.

    The embedding table stays as it is; its rows become float32 as they are looked up.
    """
    embedding = model.get_input_embeddings()
    embedding.register_forward_hook(lambda module, args, rows: rows.float())
    for parameter in model.parameters():
        if parameter is not embedding.weight:
            parameter.data = parameter.data.float()


def holds_matrices_in_linears(model: PreTrainedModel) -> bool:
    """Whether linear layers and embeddings hold everything of `model` that is large."""
    modules = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Embedding)]
    held = {id(parameter) for module in modules for parameter in module.parameters()}
    return all(parameter.ndim < 2 for parameter in model.parameters() if id(parameter) not in held)


def keeps_rows_apart(model: PreTrainedModel) -> bool:
    """Whether, in all linear layers of `model`, no row's result depends on the other rows, to the last bit."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | _Packed)]
    return all(isinstance(layer, _Packed) and layer.keeps_rows_apart for layer in layers)


def _replace(model: PreTrainedModel, name: str, layer: nn.Module) -> None:
    parent_name, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent_name), attribute, layer)
