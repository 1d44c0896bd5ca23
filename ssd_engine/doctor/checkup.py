"""Checkup: all that `ssd doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ssd_engine.doctor.installation import Package, installed_packages
from ssd_engine.drafting.effort import MOST_POSITIONS
from ssd_engine.errors import ModelLoadError
from ssd_engine.loading import require_local_packages
from ssd_engine.models.pair import PairSpec

if TYPE_CHECKING:
    from ssd_engine.doctor.hardware import Hardware
    from ssd_engine.doctor.pair import PairNeeds


@dataclass(frozen=True, kw_only=True)
class SpeedBound:
    """What reading the weights allows, at the bandwidth that was measured; no answer is faster."""

    bytes_per_second: float
    target_tokens_per_second: float
    """Of the target alone."""
    ssd_tokens_per_second: float
    """Where every drafted token is accepted, and with "auto" every one was guessed, so that the draft reads once."""
    num_draft_tokens: int
    """In a round."""


@dataclass(kw_only=True)
class Checkup:
    """What is installed, what this machine is, what the pair needs, and what speed can be had."""

    packages: list[Package] = field(default_factory=installed_packages)
    hardware: Hardware | None = None
    pair: PairNeeds | None = None
    speed: SpeedBound | None = None
    problems: list[str] = field(default_factory=list)
    """Why the pair cannot run here, each with what to do."""

    @property
    def can_run(self) -> bool:
        """Whether nothing stands in the pair's way."""
        return not self.problems


def check_up(spec: PairSpec) -> Checkup:
    """Look at this machine and a pair; loads no weights and downloads nothing. Errors are `pair_needs`'."""
    found = Checkup()
    try:
        require_local_packages()
    except ModelLoadError as error:
        found.problems.append(str(error))
        return found
    from ssd_engine.doctor.hardware import hardware
    from ssd_engine.doctor.pair import pair_needs

    found.hardware = hardware()
    found.pair = pair_needs(spec)
    found.problems = found.pair.problems
    if found.can_run:
        found.speed = _speed(found.pair)
    return found


def _speed(pair: PairNeeds) -> SpeedBound | None:
    """None where the pair's sizes are not known yet."""
    import torch

    from ssd_engine.models.bandwidth import memory_bandwidth

    if pair.device is None or not pair.target.bytes_read or not pair.draft.bytes_read:
        return None
    bandwidth = memory_bandwidth(torch.device(pair.device))
    guesses = pair.num_draft_tokens == "auto"
    drafted = MOST_POSITIONS if guesses else int(pair.num_draft_tokens)
    bytes_a_round = (1 if guesses else drafted) * pair.draft.bytes_read + pair.target.bytes_read
    return SpeedBound(
        bytes_per_second=bandwidth,
        target_tokens_per_second=bandwidth / pair.target.bytes_read,
        ssd_tokens_per_second=drafted * bandwidth / bytes_a_round,
        num_draft_tokens=drafted,
    )
