"""Random numbers as a function of seed and place: every process that asks gets the same ones, in whatever order."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

DRAFT, ACCEPT, RECOVER, REDRAW = range(4)
"""What a token's numbers are for; the last where a mask forbids what was drafted."""
_PURPOSES = 4


def seed_of(request_id: str, seed: int | None) -> int:
    """A request's seed: its own, or one made of its id, as far as 64 bits go (signed, as tensors hold them)."""
    text = request_id if seed is None else f"seed {seed}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def uniforms(seeds: Tensor, places: Tensor, purpose: int) -> Tensor:
    """[P] float64 in [0, 1): the numbers of `places` [P] int64 in the answers with `seeds` [P] int64.

    SplitMix64 (Steele, Lea and Flood 2014) by its counter; int64 arithmetic wraps around, as it wants.
    """
    z = seeds + (places * _PURPOSES + purpose + 1) * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return _shifted(z ^ _shifted(z, 31), 11).to(torch.float64) * 2.0**-53


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _shifted(z: Tensor, bits: int) -> Tensor:
    """`z` shifted right as a number without a sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
