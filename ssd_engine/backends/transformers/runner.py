"""ModelRunner: one model's forward passes over any number of sequences at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from ssd_engine.backends.transformers.attention import under_way, use_segment_attention
from ssd_engine.backends.transformers.compiled import CompiledPasses
from ssd_engine.backends.transformers.graphs import PassGraphs
from ssd_engine.backends.transformers.kv_cache import KVCache, Snapshot, count_cache_layers
from ssd_engine.backends.transformers.layer_states import LayerStates
from ssd_engine.backends.transformers.lean import LeanPasses
from ssd_engine.backends.transformers.prefix_store import PrefixStore, block_ends
from ssd_engine.backends.transformers.segments import Segment, SegmentedPass, in_blocks
from ssd_engine.drafting.pass_times import SIZES
from ssd_engine.errors import SSDError
from ssd_engine.models.forward import cache_argument
from ssd_engine.models.linear import keeps_rows_apart

_logger = logging.getLogger(__name__)

_LONGEST_TRIAL = max(SIZES)
_BLOCK_SIZES = {"cpu": (32, 16)}
_BLOCK_SIZES_ELSEWHERE = (256, 32, 16)
_GROWTH = 4
"""A row that is moved to a longer stretch gets a quarter more than it needs."""


class Row:
    """One sequence in one model: the tokens that stand, and how many of them the model has read."""

    def __init__(self, prompt_ids: Sequence[int], ends: list[int], stretch: range, num_given: int = 0) -> None:
        self.token_ids = list(prompt_ids)
        self.length = 0
        self.cached_prompt_tokens = 0
        self.ends = ends
        """Where the blocks end in which the prompt is read."""
        self.stretch = stretch
        """The positions of the cache that are this row's own."""
        self.first_heard = max(len(prompt_ids) - num_given - 1, 0)
        """The prompt's token from which on is wanted what the model says after it: the last `num_given` were given."""
        self._num_unread = 1

    @property
    def next_block(self) -> list[int]:
        """The prompt's next block; empty once all but the last token was read."""
        return self.token_ids[self.length : self.end_of_block(self.length)]

    @property
    def num_unread_blocks(self) -> int:
        """Blocks of the prompt that are still to be read."""
        return sum(end > self.length for end in self.ends)

    @property
    def is_heard(self) -> bool:
        """Whether it is wanted what the model says within the prompt's blocks."""
        return bool(self.ends) and self.first_heard < self.ends[-1]

    def end_of_block(self, start: int) -> int:
        """Where the prompt's block ends that begins at `start`; there itself, where none does."""
        return next((end for end in self.ends if end > start), start)

    @property
    def unread(self) -> list[int]:
        """The tokens that the next pass has to read: the one chosen last, and what a grammar forced after it."""
        return self.token_ids[len(self.token_ids) - self._num_unread :]

    def begin(self, forced: Sequence[int]) -> None:
        """Let tokens stand that a grammar forces before anything is chosen; the prompt need not have been read."""
        self.token_ids.extend(forced)
        self._num_unread = 1 + len(forced)

    def accept(self, token_ids: Sequence[int], num_unread: int = 1) -> None:
        """Let tokens stand, the last `num_unread` of which no pass has read; what was read of others is rolled back."""
        self.token_ids.extend(token_ids)
        self._num_unread = num_unread
        self.roll_back()

    def roll_back(self) -> None:
        """Undo what was read of tokens that do not stand."""
        self.length = len(self.token_ids) - self._num_unread


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What a model says after T tokens of a prompt; it stands until the next pass."""

    logits: Tensor
    """[T, V]."""
    hidden: Tensor | None
    """[T, H] the output of the runner's layer, if it has one."""


@dataclass(frozen=True)
class _Layout:
    """Where the tokens of a pass belong."""

    segments: list[Segment]
    positions: list[int]
    """[T] places in their sequences."""
    written: list[int]
    """[T] places in the cache."""

    @classmethod
    def of(cls, stretches: Sequence[range], counts: Sequence[int]) -> _Layout:
        """The last `counts` positions of each stretch are new."""
        layout = cls([], [], [])
        for stretch, count in zip(stretches, counts, strict=True):
            first = len(layout.positions)
            layout.segments.append(Segment(slice(first, first + count), slice(stretch.start, stretch.stop)))
            layout.positions.extend(range(len(stretch) - count, len(stretch)))
            layout.written.extend(stretch[len(stretch) - count :])
        return layout


class ModelRunner:
    """Runs one causal language model."""

    def __init__(
        self, model: PreTrainedModel, vocab_size: int, *, compile: bool = False, layer: int | None = None
    ) -> None:
        """Take a model over; `compile` its layers, which takes a while.

        `layer`, counted from 1, is the one whose output `hidden` gives.

        Raises:
            ModelLoadError: it keeps a state that cannot be rolled back, cannot take several sequences at once, or
                cannot be compiled, or it has no such layer.
        """
        self.model = model.eval()
        self._layer = None if layer is None else LayerStates(model, layer)
        self.hidden: Tensor | None = None
        """[T, H] of the last `forward`, where the runner has a layer; it stands until the next pass."""
        self._lean = LeanPasses(model, self._layer) if LeanPasses.suits(model) else None
        self._run: Callable[..., Any] = self._lean or self.model
        self._cache_argument = cache_argument(model)
        self.vocab_size = vocab_size
        self._num_layers = count_cache_layers(model.config)
        use_segment_attention(model, self._num_layers)
        self.reads_together = self._lean is not None and keeps_rows_apart(model)
        """Whether blocks of prompts can be read in one pass and come out as they would in passes of their own."""
        self._block_sizes = _BLOCK_SIZES.get(self.device.type, _BLOCK_SIZES_ELSEWHERE)
        self.allocate(positions=0, prefix_bytes=0)
        self._try(_LONGEST_TRIAL)  # what this family cannot do shows here, before any request
        self.bytes_per_position = self.cache.nbytes // self.cache.positions
        if compile:
            self._compile()

    def allocate(self, positions: int, prefix_bytes: int) -> None:
        """Make room for `positions` token positions, which sequences share, and `prefix_bytes` of kept prefixes."""
        self.positions = positions
        self.cache = KVCache(self._num_layers, in_blocks(positions) + in_blocks(_LONGEST_TRIAL))
        self.prefixes = PrefixStore(prefix_bytes)
        self._trial = self._trial_row()
        self._graphs: PassGraphs | None = None

    def capture_graphs(self) -> None:
        """Where the model is on one CUDA device, run its passes as CUDA graphs from now on."""
        if self.device.type != "cuda" or {parameter.device for parameter in self.model.parameters()} != {self.device}:
            return
        self._graphs = PassGraphs(self._outputs, self.cache, self.device, spare=self._trial.stretch[-1])
        self._try(1)

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    def open(self, prompt_ids: Sequence[int], max_new_tokens: int, num_given: int = 0) -> Row | None:
        """Begin a row, of whose prompt the last `num_given` are heard; None while the cache has no room for it."""
        stretch = self.cache.arena.take(in_blocks(len(prompt_ids) + max_new_tokens))
        if stretch is None:
            return None
        return Row(prompt_ids, block_ends(len(prompt_ids), self._block_sizes), stretch, num_given)

    def _widen(self, row: Row, length: int) -> None:
        """Move a row to a stretch of at least `length` positions; raises `SSDError` where there is no room."""
        stretch = self.cache.arena.take(in_blocks(length + length // _GROWTH))
        if stretch is None:
            raise SSDError(
                f"the draft reads this answer as more than {len(row.stretch)} tokens of its own, and the key-value "
                "cache has no room for them; raise kv_cache_bytes, or lower max_new_tokens"
            )
        read = row.stretch[: row.length]
        self.cache.restore(self.cache.snapshot(read), stretch[: len(read)])
        self.cache.arena.give_back(row.stretch)
        row.stretch = stretch

    def close(self, row: Row) -> None:
        """Free a row's part of the cache."""
        self.cache.arena.give_back(row.stretch)

    def read_block(self, row: Row) -> Heard | None:
        """Read the next block of a row's prompt, from a kept prefix as far as one goes.

        Returns:
            What the model says after those of the block's tokens from `Row.first_heard` on; None where there are none.
        """
        self._reuse_prefix(row)
        block = range(row.length, row.end_of_block(row.length))
        if not block:
            return None
        unheard = max(row.first_heard - row.length, 0)
        is_heard = unheard < len(block)
        outputs = self._read([(row, block)], wants_logits=is_heard)
        if not is_heard:
            return None
        hidden = None if self._layer is None or self._layer.latest is None else self._layer.latest[0, unheard:]
        return Heard(logits=outputs.logits[0, unheard:, : self.vocab_size], hidden=hidden)

    def read_blocks(self, rows: Sequence[Row]) -> None:
        """Read the next block of each row's prompt in one pass, and one more for every time that a row is named again.

        A row that begins like one before it waits, since it can reuse what that one will have read. Nothing is heard.
        """
        blocks: list[tuple[Row, range]] = []
        ends: dict[Row, int] = {}
        for row in rows:
            if row not in ends and not self._reuse_prefix(row, ends):
                continue
            start = ends.get(row, row.length)
            end = row.end_of_block(start)
            if end > start:
                blocks.append((row, range(start, end)))
                ends[row] = end
        if blocks:
            self._read(blocks, wants_logits=False)

    def _read(self, blocks: Sequence[tuple[Row, range]], *, wants_logits: bool) -> Any:
        """Read blocks of prompts in one pass; what the model makes of them."""
        token_ids = [token_id for row, block in blocks for token_id in row.token_ids[block.start : block.stop]]
        layout = _Layout.of([row.stretch[: block.stop] for row, block in blocks], [len(block) for _, block in blocks])
        # A prompt's blocks are the same whatever else is read, so its tokens may attend together, which is faster.
        outputs = self._pass(self._reader(wants_logits=wants_logits), torch.tensor(token_ids), layout, by_token=False)
        for row, block in blocks:
            row.length = block.stop
        for row in dict.fromkeys(row for row, _ in blocks):
            if not row.next_block:
                self._keep_prefix(row)
        return outputs

    def forward(self, rows: Sequence[Row], token_ids: Tensor, counts: Sequence[int]) -> Tensor:
        """Read new tokens of several rows, one row after the other.

        Args:
            rows: R rows.
            token_ids: [T] int64, the rows' tokens end to end.
            counts: R numbers of tokens.

        Returns:
            [T, V] logits, which stand until the next pass.
        """
        for row, count in zip(rows, counts, strict=True):
            if row.length + count > len(row.stretch):
                self._widen(row, row.length + count)
        stretches = [row.stretch[: row.length + count] for row, count in zip(rows, counts, strict=True)]
        layout = _Layout.of(stretches, counts)
        outputs = self._replay(token_ids, layout)
        if outputs is None:
            outputs = self._kept(self._pass(self._run, token_ids, layout, by_token=True))
        logits, *hidden = outputs
        self.hidden = hidden[0] if hidden else None
        for row, count in zip(rows, counts, strict=True):
            row.length += count
        return logits[:, : self.vocab_size]

    def seconds(self, tokens: int) -> float:
        """Time of a pass over `tokens` tokens; nobody may be reading meanwhile."""
        start = time.perf_counter()
        self._try(tokens)
        return time.perf_counter() - start

    @property
    def num_graphs(self) -> int:
        """Passes that have been captured."""
        return 0 if self._graphs is None else len(self._graphs)

    def wait(self) -> None:
        """Until the device has done what was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def shut_down(self) -> None:
        """Let go of the model, and leave it as it was before it was compiled."""
        self._graphs = None
        if isinstance(self._run, CompiledPasses):
            self._run.close()
        self._run = self.model
        if self._layer is not None:
            self._layer.close()

    def _replay(self, token_ids: Tensor, layout: _Layout) -> tuple[Tensor, ...] | None:
        """`_kept` through a CUDA graph; None where there are no graphs."""
        if self._graphs is None:
            return None
        try:
            return self._graphs.run(token_ids, layout.positions, layout.written)
        except RuntimeError as error:
            _logger.warning("%s goes on without CUDA graphs: %s", type(self.model).__name__, error)
            self._graphs = None
            return None

    def _trial_row(self) -> Row:
        stretch = self.cache.arena.take(in_blocks(_LONGEST_TRIAL))
        assert stretch is not None  # nobody was there before
        return Row([0], [], stretch)

    @torch.inference_mode()
    def _try(self, tokens: int) -> None:
        """A pass that stands for nothing."""
        self.forward([self._trial], torch.arange(tokens), [tokens])[-1, 0].item()  # waits for the device
        self._trial.length = 0

    def _compile(self) -> None:
        self._run = compiled = CompiledPasses(self.model)
        sizes = (2, 1)
        bar = tqdm(desc=f"Compiling {type(self.model).__name__}", total=len(sizes))
        with compiled.reporting_failure(), bar:
            for tokens in sizes:
                self._try(tokens)
                bar.update()

    def _reader(self, *, wants_logits: bool) -> Callable[..., Any]:
        """What reads a prompt: where no logits are wanted, without the output matrix, a good part of a small model."""
        if self._lean is not None:
            return partial(self._lean, wants_logits=wants_logits)
        reader: Callable[..., Any] = self.model if wants_logits else self.model.base_model
        return reader

    def _reuse_prefix(self, row: Row, others: Collection[Row] = ()) -> bool:
        """Take what is kept of a row's prompt over, if nothing of it was read yet.

        Not where the prompt goes on like one of `others`, and more will be kept once that one is read: False then.
        """
        if row.length > 0:
            return True
        # What is to be heard has to be read.
        prefix, shared = self.prefixes.find(row.token_ids, [end for end in row.ends if end <= row.first_heard])
        if any(_go_on_alike(row, other, shared) for other in others):
            return False
        if prefix is not None:
            self.cache.restore(prefix.snapshot, row.stretch[:shared])
            row.length = row.cached_prompt_tokens = shared
        return True

    def _keep_prefix(self, row: Row) -> None:
        def copy(length: int) -> Snapshot:
            return self.cache.snapshot(row.stretch[:length])

        try:
            self.prefixes.keep(row.token_ids[: row.length], row.ends, self.bytes_per_position, copy)
        except (MemoryError, RuntimeError) as error:  # on a CPU, torch raises a RuntimeError where memory is wanting
            _logger.warning(
                "a prompt's first %d tokens could not be kept for later ones: %s; where memory is short, give "
                "prefix_cache_bytes less",
                row.length,
                error,
            )

    @torch.inference_mode()
    def _pass(self, run: Callable[..., Any], token_ids: Tensor, layout: _Layout, *, by_token: bool) -> Any:
        """What `run` (the model, or a part of it) makes of new tokens of several sequences."""
        written = torch.tensor(layout.written, device=self.device)
        positions = torch.tensor([layout.positions], device=self.device)
        with under_way(SegmentedPass(self.cache, layout.segments, written, by_token=by_token)):
            return self._call(run, token_ids.to(self.device)[None], positions)

    def _outputs(self, token_ids: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        return self._kept(self._call(self._run, token_ids, positions))

    def _kept(self, outputs: Any) -> tuple[Tensor, ...]:
        """What is kept of a pass's outputs: [T, V] logits, and [T, H] of the runner's layer, if it has one."""
        if self._layer is None or self._layer.latest is None:
            return (outputs.logits[0],)
        return outputs.logits[0], self._layer.latest[0]

    def _call(self, run: Callable[..., Any], token_ids: Tensor, positions: Tensor) -> Any:
        cache = {self._cache_argument: self.cache}
        return run(input_ids=token_ids, position_ids=positions, use_cache=True, return_dict=True, **cache)


def _go_on_alike(row: Row, other: Row, length: int) -> bool:
    """Whether both prompts have the same tokens for `length` and the block of the first one's after it."""
    end = row.end_of_block(length)
    return end > length and end in other.ends and row.token_ids[:end] == other.token_ids[:end]
