"""EngineParts: what a backend puts together for an engine to run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ssd_engine.config import SSDConfig
from ssd_engine.serving.decoder import Decoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ssd_engine.serving.intake import Intake

MAX_WAITING = 16_384
"""Requests that wait for a place where nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class EngineParts:
    """A pair that is ready to decode.

    Raises:
        InvalidRequestError: `config` uses signals that cannot be read from this draft.
    """

    intake: Intake
    decoder: Decoder[Any]
    tokenizer: PreTrainedTokenizerBase
    """The target's."""
    name: str
    """What responses call the pair."""
    config: SSDConfig
    max_batch_size: int
    """Most requests that decode together."""
    max_waiting: int = MAX_WAITING
    """Most requests that wait for a place."""
