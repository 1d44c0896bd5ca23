"""The command `ssd`: its global options, its subcommands, and what becomes of errors."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ssd_engine.cli import models, pair
from ssd_engine.cli.align import align
from ssd_engine.cli.attack import attack
from ssd_engine.cli.bench import bench
from ssd_engine.cli.chat import chat
from ssd_engine.cli.console import print_error
from ssd_engine.cli.doctor import doctor
from ssd_engine.cli.eval import evaluate
from ssd_engine.cli.run import run
from ssd_engine.cli.serve import serve


class _ErrorsAsMessages(TyperGroup):
    """Failures end in one message and exit code 1; bad usage is Typer's own, with exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, typer.TyperException, BrokenPipeError):
            raise
        except Exception as error:
            if ctx.params["debug"]:
                raise
            print_error(error)
            raise typer.Exit(1) from error


app = typer.Typer(
    name="ssd",
    help="Speculative Safety-Aware Decoding: a small safe model drafts, a large one verifies, both decide.",
    cls=_ErrorsAsMessages,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(chat)
app.command()(run)
app.command()(bench)
app.command()(align)
app.command()(serve)
app.command("eval")(evaluate)
app.command()(attack)
app.command()(doctor)
app.add_typer(models.app, name="models")
app.add_typer(pair.app, name="pair")


def _print_version(*, wanted: bool) -> None:
    if wanted:
        typer.echo(f"ssd-integrations {version('ssd-integrations')}")
        raise typer.Exit


@app.callback()
def _global_options(
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the console script `ssd`."""
    app(prog_name="ssd")
