"""Merged layers: linear layers that read the same rows, as one product of one packed weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor, nn

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names, within one module, of layers that are called with the same rows one after the other."""


class MergedLinear(nn.Module):
    """Several linear layers of the same rows; each of them is a `MergedPart` of it."""

    def __init__(self, packed: nn.Module, sizes: list[int]) -> None:
        """`packed`: the layers' outputs end to end, `sizes` of them."""
        super().__init__()
        self.packed = packed
        ends = list(accumulate(sizes))
        self._parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        self._rows: Tensor | None = None
        self._product: Tensor | None = None

    def forward(self, rows: Tensor) -> Tensor:
        """[..., out] of all layers, end to end, of rows [..., in]."""
        product: Tensor = self.packed(rows)
        return product

    def part(self, index: int, rows: Tensor) -> Tensor:
        """[..., out] of one layer. The product is made when the first one asks, and let go when the last one has it."""
        if torch.compiler.is_compiling():  # where the same product is made once anyway
            return self(rows)[..., self._parts[index]]  # type: ignore[no-any-return]
        if self._rows is not rows or self._product is None:
            self._rows, self._product = rows, self(rows)
        part = self._product[..., self._parts[index]]
        if index == len(self._parts) - 1:
            self._rows = self._product = None
        return part


class MergedPart(nn.Module):
    """One layer of a `MergedLinear`, in the place of the linear layer that it was."""

    def __init__(self, merged: MergedLinear, index: int) -> None:
        super().__init__()
        self.merged = merged
        self.index = index

    def forward(self, rows: Tensor) -> Tensor:
        """[..., out] of rows [..., in]."""
        return self.merged.part(self.index, rows)


def merged(layers: list[nn.Linear], make: Callable[[nn.Linear], nn.Module]) -> list[nn.Module]:
    """What stands in the place of `layers`, which read the same rows; `make` packs a weight."""
    if len(layers) == 1:
        return [make(layers[0])]
    whole = nn.Linear(layers[0].in_features, 1, bias=False, device="meta")
    whole.out_features = sum(layer.out_features for layer in layers)
    with torch.no_grad():
        whole.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
        if whole.weight.dtype is torch.int8:
            whole.scales = torch.cat([cast(Tensor, layer.scales) for layer in layers])
        if any(layer.bias is not None for layer in layers):
            whole.bias = _biases(layers)
    merged_layer = MergedLinear(make(whole), [layer.out_features for layer in layers])
    return [MergedPart(merged_layer, index) for index in range(len(layers))]


def _biases(layers: list[nn.Linear]) -> nn.Parameter:
    """The layers' biases end to end, zeros where one has none."""
    biases: list[Tensor] = [torch.zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers]
    return nn.Parameter(torch.cat(biases), requires_grad=False)


def groups_of(model: nn.Module, *, merging: bool) -> Iterator[list[tuple[str, nn.Linear]]]:
    """The linear layers of `model` with their names, those together, if `merging`, that can be one product."""
    for prefix, module in model.named_modules():
        layers = {name: child for name, child in module.named_children() if type(child) is nn.Linear}
        for siblings in SIBLINGS if merging else ():
            if set(siblings) <= layers.keys():
                together = [layers.pop(name) for name in siblings]
                yield [(f"{prefix}.{name}", layer) for name, layer in zip(siblings, together, strict=True)]
        for name, layer in layers.items():
            yield [(f"{prefix}.{name}" if prefix else name, layer)]
