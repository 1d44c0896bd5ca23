"""PassGraphs: passes captured as CUDA graphs, so that a GPU waits for no Python between their kernels."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function

from ssd_engine.backends.transformers.attention import MaskFunction, Projections, attend, under_way
from ssd_engine.backends.transformers.kv_cache import KVCache

_SMALLEST_BOUND = 256
_WARM_UPS = 2

Outputs = tuple[Tensor, ...]
"""What a pass gives: [T, ...] each."""
Call = Callable[[Tensor, Tensor], Outputs]
"""The model: [1, T] token ids and [1, T] positions to its outputs, the first of which are [T, V] logits."""


class StaticPass:
    """A pass whose shapes and addresses depend on the number of its tokens alone.

    Every token attends to all cache positions below `bound`; a mask hides those of other sequences, and what is stale.
    """

    def __init__(self, cache: KVCache, num_tokens: int, bound: int, device: torch.device) -> None:
        self.token_ids = torch.zeros(1, num_tokens, dtype=torch.int64, device=device)
        self.positions = torch.zeros_like(self.token_ids)
        self.written = torch.zeros_like(self.token_ids[0])
        self._cache = cache
        self._bound = bound
        self._places = torch.arange(bound, device=device)
        self._masks: list[Tensor] = []

    def load(self, token_ids: Tensor, positions: Sequence[int], written: Sequence[int]) -> None:
        """Set the tokens, their places in their sequences and their places in the cache, [T] each."""
        self.token_ids[0].copy_(token_ids)
        self.positions[0].copy_(torch.tensor(positions))
        self.written.copy_(torch.tensor(written))

    def run(self, call: Call) -> Outputs:
        """What `call` makes of what is loaded."""
        self._masks.clear()
        self.add_mask(causal_mask_function)
        with under_way(self):
            return call(self.token_ids, self.positions)

    def add_mask(self, function: MaskFunction) -> int:
        """Enter a mask of the pass; returns its number."""
        queries = self.positions[0, :, None]
        # A sequence's positions follow one another in the cache: here each place of it becomes one of the token's own
        # sequence, negative or in the future where another sequence has it.
        keys = self._places - (self.written[:, None] - queries)
        zero = torch.zeros((), dtype=torch.int64, device=self._places.device)
        self._masks.append((function(zero, zero, queries, keys) & (keys >= 0) & (keys <= queries))[None, None])
        return len(self._masks) - 1

    def attend(self, layer: int, mask: int, new: Projections) -> Tensor:
        """Attention of one layer, its new keys and values written to the cache."""
        keys, values = (
            states[:, :, : self._bound] for states in self._cache.write(layer, self.written, new.key, new.value)
        )
        return attend(new.query, keys, values, self._masks[mask], new.scaling, new.softcap).contiguous()


class PassGraphs:
    """One CUDA graph for each size of pass and each bound of positions, captured when first needed.

    Sizes are powers of two; a pass is filled up with tokens that stand for nothing.
    """

    def __init__(self, call: Call, cache: KVCache, device: torch.device, spare: int) -> None:
        """`spare`: a position of the cache that is nobody's, for the tokens that stand for nothing."""
        self._call = call
        self._cache = cache
        self._device = device
        self._spare = spare
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)
        self._captured: dict[tuple[int, int], tuple[StaticPass, torch.cuda.CUDAGraph, Outputs]] = {}

    def __len__(self) -> int:
        return len(self._captured)

    @torch.inference_mode()
    def run(self, token_ids: Tensor, positions: Sequence[int], written: Sequence[int]) -> Outputs:
        """The outputs of a pass, which stand until the next pass.

        Args:
            token_ids: [T] int64.
            positions, written: T places in the sequences and in the cache.

        Raises:
            RuntimeError: the pass cannot be captured.
        """
        num_tokens = len(positions)
        size, bound = power_of_two(num_tokens), bound_of(max(written) + 1, self._cache.positions)
        filling = size - num_tokens
        token_ids = torch.nn.functional.pad(token_ids, (0, filling))
        positions, written = [*positions, *[0] * filling], [*written, *[self._spare] * filling]
        captured = self._captured.get((size, bound))
        if captured is None:
            step = StaticPass(self._cache, size, bound, self._device)
            step.load(token_ids, positions, written)
            captured = self._captured[size, bound] = step, *self._capture(step)
        step, graph, outputs = captured
        step.load(token_ids, positions, written)
        graph.replay()
        return tuple(output[:num_tokens] for output in outputs)

    def _capture(self, step: StaticPass) -> tuple[torch.cuda.CUDAGraph, Outputs]:
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self._device)
        # One capture at a time in the process: torch's bookkeeping of captures is the process's.
        with _capturing, torch.cuda.device(self._device):
            try:
                self._stream.wait_stream(current)
                with torch.cuda.stream(self._stream):
                    for _ in range(_WARM_UPS):  # libraries set themselves up at first calls, which cannot be captured
                        step.run(self._call)
                # Calls of other threads, which use the device for their own ends, do not disturb it.
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    outputs = step.run(self._call)
                current.wait_stream(self._stream)
            finally:
                torch.cuda.set_stream(current)  # a capture that fails leaves its own behind
        return graph, outputs


_capturing = threading.Lock()


def power_of_two(number: int) -> int:
    """The least power of two that is no less than `number`."""
    return 1 << (number - 1).bit_length()


def bound_of(positions: int, most: int) -> int:
    """The number of cache positions that a pass is captured for: powers of two, so that there are few graphs."""
    return min(most, max(_SMALLEST_BOUND, power_of_two(positions)))
