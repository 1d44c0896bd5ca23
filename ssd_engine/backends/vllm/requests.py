"""What the workers know of the requests that ask for SSD: their settings, their scheme control, their seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssd_engine.backends.vllm.uniforms import seed_of
from ssd_engine.config import SSDConfig
from ssd_engine.errors import InvalidRequestError
from ssd_engine.scheme_batch import SchemeBatch

EXTRA_ARG = "ssd"
"""The key of `SamplingParams.extra_args` under which a request asks for SSD."""


def requested_config(block: Any, num_draft_tokens: int) -> SSDConfig | None:
    """What a request's `ssd` block asks for; None for vLLM's own rule (no block, or false).

    Raises:
        InvalidRequestError: the block has a field that is unknown or impossible, here or at all.
    """
    if block is None or block is False:
        return None
    if block is True:
        block = {}
    if not isinstance(block, Mapping):
        raise InvalidRequestError(f"ssd={block!r}: give an object of SSD settings, or false")
    config = SSDConfig(**{"num_draft_tokens": num_draft_tokens, **block})
    if config.num_draft_tokens != num_draft_tokens:
        raise InvalidRequestError(
            f"ssd.num_draft_tokens={config.num_draft_tokens!r}: with vLLM it is the engine's, "
            f"{num_draft_tokens} here; leave it out"
        )
    if config.draft_system_prompt is not None:
        raise InvalidRequestError(
            f"ssd.draft_system_prompt={config.draft_system_prompt!r}: vLLM gives both models one prompt; leave it out"
        )
    return config


@dataclass(frozen=True)
class RequestEntry:
    """One request that asks for SSD."""

    slot: int
    config: SSDConfig
    temperature: float
    """0 is greedy."""
    top_k: int | None
    top_p: float


class RequestTable:
    """The requests by id, each with a row for its scheme control; rows are found wherever vLLM's batch has moved."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._entries: dict[str, RequestEntry] = {}
        self._free: list[int] = []
        self._schemes = SchemeBatch.of([], device).rows
        self._seeds = torch.empty(0, dtype=torch.int64, device=device)

    def get(self, request_id: str) -> RequestEntry | None:
        return self._entries.get(request_id)

    def __len__(self) -> int:
        return len(self._entries)

    def enter(
        self,
        request_id: str,
        config: SSDConfig,
        *,
        seed: int | None,
        temperature: float,
        top_k: int | None,
        top_p: float,
    ) -> RequestEntry:
        """Begin a request's answer."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self._schemes[slot] = SchemeBatch.of([config], self._device).rows[0]
        self._seeds[slot] = seed_of(request_id, seed)
        entry = self._entries[request_id] = RequestEntry(slot, config, temperature, top_k, top_p)
        return entry

    def drop(self, request_id: str) -> None:
        """Forget a request, if it is known."""
        entry = self._entries.pop(request_id, None)
        if entry is not None:
            self._free.append(entry.slot)

    def schemes(self, slots: Tensor) -> SchemeBatch:
        """The scheme control of the requests in `slots` [R]; `store` it when it has moved on."""
        return SchemeBatch(self._schemes[slots])

    def store(self, slots: Tensor, schemes: SchemeBatch) -> None:
        self._schemes[slots] = schemes.rows

    def seeds(self, slots: Tensor) -> Tensor:
        """[R] int64."""
        return self._seeds[slots]

    def _grow(self) -> None:
        more = max(len(self._seeds), 16)
        self._free += range(len(self._seeds) + more - 1, len(self._seeds) - 1, -1)
        self._schemes = torch.cat([self._schemes, self._schemes.new_zeros(more, self._schemes.shape[1])])
        self._seeds = torch.cat([self._seeds, self._seeds.new_zeros(more)])
