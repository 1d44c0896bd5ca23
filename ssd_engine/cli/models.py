"""`ssd models`: named pairs, and their weights on this machine."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from ssd_engine.cli.console import Stages, stdout
from ssd_engine.errors import ModelLoadError
from ssd_engine.models.presets import (
    DEFAULT_PRESET,
    PRESETS,
    SAFE_DRAFTS,
    GGUFSource,
    Preset,
    get_preset,
    title,
)

app = typer.Typer(help="Named pairs of models: list them, fetch them, find them.", no_args_is_help=True)


def _preset(name: str) -> Preset:
    try:
        return get_preset(name)
    except ModelLoadError as error:
        raise typer.BadParameter(str(error)) from error


NameArgument = Annotated[str, typer.Argument(help="Name of the pair.")]


@app.command("list")
def list_presets() -> None:
    """List the named pairs."""
    from ssd_engine.models.resolve import local_folder

    table = Table("Name", "Pair", "Weights", show_lines=True)
    for preset in PRESETS.values():
        table.add_row(
            f"{preset.name}\n(default)" if preset.name == DEFAULT_PRESET else preset.name,
            f"{title(preset.target)} + {title(preset.draft)}\n{preset.description} Licence: {preset.licence}.",
            "here" if all(map(local_folder, (preset.target, preset.draft))) else _where_to_get(preset),
        )
    stdout.print(table)
    stdout.print(f"Beside any target, as --draft: {', '.join(SAFE_DRAFTS)} (ssd pair check tells what to expect)")


def _where_to_get(preset: Preset) -> str:
    sizes = [side.size for side in (preset.target, preset.draft) if isinstance(side, GGUFSource)]
    return f"{sum(sizes) / 1e9:.1f} GB to pull" if sizes else "on the hub"


@app.command()
def pull(name: NameArgument = DEFAULT_PRESET) -> None:
    """Fetch a pair's weights, check them, and make them ready to load. An interrupted fetch goes on."""
    from ssd_engine.models.resolve import pull_pair

    with Stages() as stages:
        folders = pull_pair(_preset(name), stages)
    for folder in folders:
        typer.echo(folder)


@app.command()
def path(name: NameArgument = DEFAULT_PRESET) -> None:
    """Print the folders of a pair's target and draft, one a line."""
    from ssd_engine.models.resolve import local_folder

    preset = _preset(name)
    folders = [local_folder(side) for side in (preset.target, preset.draft)]
    if None in folders:
        raise ModelLoadError(f"{preset.name} is not on this machine. Fetch it with: ssd models pull {preset.name}")
    for folder in folders:
        typer.echo(folder)
