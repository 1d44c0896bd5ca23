"""The options that say how an answer is decoded."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ssd_engine.config import Decoding

_PANEL: Any = {"rich_help_panel": "Generation"}
DecodingOption = Annotated[Decoding, typer.Option(help="ssd, or a baseline in the same loop.", **_PANEL)]
MaxTokensOption = Annotated[int, typer.Option(min=1, help="Most tokens to generate.", **_PANEL)]
TemperatureOption = Annotated[float, typer.Option(min=0, help="0 is greedy.", **_PANEL)]
TopPOption = Annotated[float, typer.Option(help="Nucleus kept when sampling, above 0 and at most 1.", **_PANEL)]
TopKOption = Annotated[int | None, typer.Option(min=1, help="Likeliest tokens kept when sampling.", **_PANEL)]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Seed of the random numbers.", **_PANEL)]
ReasoningOption = Annotated[
    str | None,
    typer.Option(help="Of models that reason: on, off, or how much (low, medium, high).", **_PANEL),
]
SystemOption = Annotated[str | None, typer.Option(help="System prompt.", **_PANEL)]


def reasoning_of(given: str | None) -> bool | str | None:
    """`--reasoning` as `GenerationParams` has it."""
    return {"on": True, "off": False}.get(given, given) if given else None
