"""Starts vLLM's OpenAI-compatible server for a pair, with SSD for every request that does not decline it."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass
from typing import Any

from ssd_engine.backends.vllm.compat import shared_processors
from ssd_engine.backends.vllm.pair import VllmPair
from ssd_engine.backends.vllm.requests import EXTRA_ARG
from ssd_engine.errors import InvalidRequestError

_TOOL_PARSER = "ssd", "ssd_engine.backends.vllm.parser", "SSDToolParser"


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Where the server listens, and what it takes.

    Raises:
        InvalidRequestError: the address is not this machine's own and no key is set, or the port is in use.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    name: str | None = None
    """What clients call the pair."""
    max_waiting: int = 256
    """Requests beyond those that decode together, before others are told to come later."""
    drain_seconds: int = 60
    """How long a stop waits for what runs."""

    def __post_init__(self) -> None:
        if not self.api_key and not _is_loopback(self.host):
            raise InvalidRequestError(
                f"host={self.host!r} can be reached from other machines, and no key is set; give --api-key (or the "
                "environment variable SSD_API_KEY), or listen on 127.0.0.1"
            )
        with socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, self.port))
            except OSError as error:
                raise InvalidRequestError(
                    f"port {self.port} of {self.host} cannot be had: {error.strerror}; give another --port, or stop "
                    "what listens there"
                ) from error


def serve(pair: VllmPair, options: ServerOptions) -> None:
    """Answer until a signal comes; what runs then is finished first."""
    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server

    plugins = os.environ.get("VLLM_PLUGINS")
    os.environ["VLLM_PLUGINS"] = ",".join(filter(None, [plugins, "ssd"]))
    with shared_processors(pair.engine_args["tensor_parallel_size"]):
        uvloop.run(run_server(_arguments(pair, options)))


def _arguments(pair: VllmPair, options: ServerOptions) -> Any:
    """The server's command line, as vLLM would have read it."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.tool_parsers import ToolParserManager
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    ToolParserManager.register_lazy_module(*_TOOL_PARSER)
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    engine = dict(pair.engine_args)
    arguments.structured_outputs_config.backend = engine.pop("structured_outputs_config")["backend"]
    settings = pair.config.model_dump(exclude={"num_draft_tokens", "draft_system_prompt"})
    settings = {
        **engine,
        "host": options.host,
        "port": options.port,
        "api_key": [options.api_key] if options.api_key else None,
        "served_model_name": [options.name] if options.name else None,
        "enable_auto_tool_choice": True,
        "tool_call_parser": _TOOL_PARSER[0],
        "shutdown_timeout": options.drain_seconds,
        "uvicorn_log_level": "warning",
        "disable_fastapi_docs": True,
        "additional_config": {
            **engine["additional_config"],
            EXTRA_ARG: settings,
            "ssd_most_requests": engine["max_num_seqs"] + options.max_waiting,
        },
    }
    for name, value in settings.items():
        if not hasattr(arguments, name):
            raise InvalidRequestError(f"engine_args={name!r}: vLLM's server has no such setting; leave it out")
        setattr(arguments, name, value)
    validate_parsed_serve_args(arguments)
    return arguments


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
