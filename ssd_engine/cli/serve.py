"""`ssd serve`: an OpenAI-compatible server in which every answer comes from the pair."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ssd_engine.cli.console import stderr
from ssd_engine.cli.pair_options import fetched, takes_pair
from ssd_engine.models.pair import PairSpec
from ssd_engine.models.presets import default_preset

_SERVER: Any = {"rich_help_panel": "Server"}


@takes_pair("vllm", without=("max_waiting",))
def serve(
    *,
    pair: PairSpec,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's need a key.", **_SERVER)
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.", **_SERVER)] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="SSD_API_KEY", help="What clients must show.", show_default=False, **_SERVER)
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="What clients call the pair.", show_default="the preset, or the target", **_SERVER),
    ] = None,
    max_waiting: Annotated[
        int, typer.Option(min=0, help="Requests that may wait; further ones get status 429.", **_SERVER)
    ] = 256,
    drain_seconds: Annotated[
        int, typer.Option(min=0, help="Seconds that a stop waits for running answers.", **_SERVER)
    ] = 60,
) -> None:
    """Serve a pair to OpenAI clients, through vLLM (docs/deploy.md)."""
    from ssd_engine.backends.vllm.compat import require_vllm

    require_vllm()
    from ssd_engine.backends.vllm.pair import VllmPair
    from ssd_engine.backends.vllm.serve import ServerOptions
    from ssd_engine.backends.vllm.serve import serve as run
    from ssd_engine.models.resolve import resolve_spec

    name = name or pair.preset or (Path(pair.target).name if pair.target else default_preset())
    options = ServerOptions(
        host=host, port=port, api_key=api_key, name=name, max_waiting=max_waiting, drain_seconds=drain_seconds
    )
    resolved = resolve_spec(fetched(pair))
    with stderr.status("Checking the pair, and merging an adapter into its draft"):
        checked = VllmPair.of(resolved)
    stderr.print(f"Serving at http://{host}:{port}/v1 once the models are loaded; Ctrl-C stops.", highlight=False)
    run(checked, options)
