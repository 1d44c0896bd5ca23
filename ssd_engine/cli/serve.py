"""`ssd serve`: an OpenAI-compatible server in which every answer comes from the pair."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ssd_engine.cli.console import stderr
from ssd_engine.cli.engine_options import (
    DraftAdapterOption,
    DraftOption,
    EngineOptions,
    NumDraftTokensOption,
    PresetOption,
    SignalOption,
    TargetOption,
)
from ssd_engine.models.presets import default_preset

_NAME_HELP = "What clients call the pair.  [default: the preset, or the target]"
_SERVER: Any = {"rich_help_panel": "Server"}
_VLLM: Any = {"rich_help_panel": "vLLM"}


def serve(
    *,
    preset: PresetOption = None,
    target: TargetOption = None,
    draft: DraftOption = None,
    draft_adapter: DraftAdapterOption = None,
    num_draft_tokens: NumDraftTokensOption = None,
    signal: SignalOption = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's need a key.", **_SERVER)
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.", **_SERVER)] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="SSD_API_KEY", help="What clients must show.", show_default=False, **_SERVER)
    ] = None,
    name: Annotated[str | None, typer.Option(help=_NAME_HELP, **_SERVER)] = None,
    max_waiting: Annotated[
        int, typer.Option(min=0, help="Requests that may wait; further ones get status 429.", **_SERVER)
    ] = 256,
    drain_seconds: Annotated[
        int, typer.Option(min=0, help="Seconds that a stop waits for running answers.", **_SERVER)
    ] = 60,
    tensor_parallel_size: Annotated[int, typer.Option(min=1, help="Devices that share each layer.", **_VLLM)] = 1,
    max_batch_size: Annotated[int, typer.Option(min=1, help="Requests that decode together.", **_VLLM)] = 64,
    max_model_len: Annotated[
        int | None, typer.Option(min=16, help="Most tokens, prompt and answer together.", **_VLLM)
    ] = None,
    kv_cache_bytes: Annotated[int | None, typer.Option(min=1, help="Memory for the key-value caches.", **_VLLM)] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.", **_VLLM)] = "auto",
) -> None:
    """Serve a pair to OpenAI clients, through vLLM (docs/deploy.md)."""
    from ssd_engine.backends.vllm.compat import require_vllm

    require_vllm()
    from ssd_engine.backends.vllm.options import VllmOptions
    from ssd_engine.backends.vllm.pair import VllmPair
    from ssd_engine.backends.vllm.serve import ServerOptions
    from ssd_engine.backends.vllm.serve import serve as run

    source = EngineOptions(
        preset=preset,
        target=target,
        draft=draft,
        draft_adapter=draft_adapter,
        num_draft_tokens=num_draft_tokens,
        signals=signal,
    ).resolve()
    settings = VllmOptions(
        tensor_parallel_size=tensor_parallel_size,
        max_batch_size=max_batch_size,
        max_model_len=max_model_len,
        kv_cache_bytes=kv_cache_bytes,
    )
    name = name or preset or (Path(target).name if target else default_preset())
    options = ServerOptions(
        host=host, port=port, api_key=api_key, name=name, max_waiting=max_waiting, drain_seconds=drain_seconds
    )
    pair = VllmPair.of(
        target=source.target,
        draft=source.draft,
        draft_adapter=source.draft_adapter,
        config=source.config,
        dtype=dtype,
        options=settings,
    )
    stderr.print(f"Serving at http://{host}:{port}/v1 once the models are loaded; Ctrl-C stops.", highlight=False)
    run(pair, options)
