"""The options that say which pair a command loads, and how: one for each field of `PairSpec` but `NOT_OPTIONS`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, get_type_hints

import typer

from ssd_engine.cli.console import Stages, starting, stderr
from ssd_engine.config import Backend, SignalConfig
from ssd_engine.errors import InvalidRequestError
from ssd_engine.models.pair import PairSpec, backend_of
from ssd_engine.models.presets import DEFAULT_PRESET, PRESETS
from ssd_engine.pair_engine import SSDEngine

Quantization = Literal["int8", "auto", "none"]
NOT_OPTIONS = ("backend", "config", "device_map", "engine_args", "name")
"""Fields that no command has an option for: a command has one backend, and names itself what it serves; settings have
options of their own, and mappings have no place on a command line."""
_SIGNAL_HELP = (
    "What else calls for Union: refusal_mass=, probe= or kl= a number from 0 to 1, hold= tokens, smoothing= places, "
    "latch=true; repeatable. 'none' for none."
)


def _known_preset(name: str | None) -> str | None:
    if name is not None and name not in PRESETS:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(PRESETS)}")
    return name


def _number_or_auto(text: str | None) -> str | int | None:
    if text is None or text == "auto":
        return text
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise typer.BadParameter(f"{text!r} is no number from 1 to 64, nor 'auto'")
    return int(text)


_KINDS: dict[str, Any] = {
    "preset": (
        str | None,
        {"show_default": f"SSD_PRESET, or {DEFAULT_PRESET}", "callback": _known_preset},
    ),
    "quantization": (Quantization | None, {}),
    "target_quantization": (Quantization | None, {}),
    "draft_quantization": (Quantization | None, {}),
    "compile": (bool, {}),
    "num_draft_tokens": (
        str | None,
        {
            "help": "Tokens drafted in a round, from 1 to 64; auto: guess, and draft while it pays.",
            "show_default": "the preset's",
            "metavar": "NUMBER|auto",
            "callback": _number_or_auto,
        },
    ),
    "signals": (
        list[str] | None,
        {"help": _SIGNAL_HELP, "show_default": "the preset's", "metavar": "NAME=THRESHOLD"},
    ),
}
"""Options whose kind or help is not the field's own."""
_FLAGS = {"compile": ("--compile",), "signals": ("--signal",)}


def option_names(backend: Backend = "transformers", without: Sequence[str] = ()) -> list[str]:
    """The fields of `PairSpec` that a command of that backend has options for."""
    names = ["preset", "target", *(name for name in PairSpec.model_fields if name not in ("preset", "target"))]
    return [name for name in names if name not in (*NOT_OPTIONS, *without) and backend_of(name) in (None, backend)]


def takes_pair(
    backend: Backend = "transformers", without: Sequence[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of a pair; it gets what they say as its argument `pair`, a `PairSpec`.

    Args:
        backend: what runs the pair; options that it has no use for are left out.
        without: further fields that are left out, since the command sets them.
    """

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        own = inspect.signature(command).parameters.values()
        parameters = [each.replace(annotation=hints[each.name]) for each in own if each.name != "pair"]
        names = option_names(backend, without)
        parameters += [_parameter(name) for name in names]

        @functools.wraps(command)
        def called(**values: Any) -> None:
            given = {name: values.pop(name) for name in names}
            command(pair=_pair(backend, given), **values)

        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {each.name: each.annotation for each in parameters}
        return called

    return decorated


def _parameter(name: str) -> inspect.Parameter:
    field = PairSpec.model_fields[name]
    kind, options = _KINDS.get(name, (None, {}))
    if kind is None:
        kind = int | None if "int" in str(field.annotation) else str | None
    for limit in field.metadata:
        options = {"min": limit.ge, **options} if hasattr(limit, "ge") else options
    shown = {**described(str(field.description)), "rich_help_panel": "Models", **options}
    annotation = Annotated[kind, typer.Option(*_FLAGS.get(name, ()), **shown)]  # type: ignore[valid-type]
    default = False if kind is bool else None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def described(description: str) -> dict[str, Any]:
    """A field's description, with what None means as a default."""
    text, none, default = description.partition(" None: ")
    return {"help": text, "show_default": default.rstrip(".")} if none and default != "no." else {"help": text}


def _pair(backend: Backend, given: dict[str, Any]) -> PairSpec:
    if (given.get("target") is None) != (given.get("draft") is None):
        raise typer.BadParameter("--target and --draft name one pair: give both, or neither")
    if given.get("preset") and given.get("target"):
        raise typer.BadParameter("--preset and --target both name a pair: give one of them")
    if given.get("signals"):
        given["signals"] = _signals(given["signals"])
    if not given.get("compile"):
        given.pop("compile", None)
    try:
        return PairSpec(backend=backend, **{name: value for name, value in given.items() if value is not None})
    except InvalidRequestError as error:
        raise typer.BadParameter(str(error)) from error


def _signals(given: Sequence[str]) -> SignalConfig | Literal["none"]:
    if list(given) == ["none"]:
        return "none"
    parts = dict(part.partition("=")[::2] for part in given)
    try:
        return SignalConfig(**parts)
    except InvalidRequestError as error:
        raise typer.BadParameter(f"--signal {' --signal '.join(given)}: {error}") from error


def fetched(pair: PairSpec) -> PairSpec:
    """The pair, after its weights were fetched, where they are not on this machine, with progress bars."""
    with starting():
        from ssd_engine.models.resolve import fetch_named, resolve_spec

        silence_transformers()
    with Stages() as stages:
        fetch_named(pair, stages)
        resolve_spec(pair, stages)
    return pair


def load(pair: PairSpec) -> SSDEngine:
    """Load a pair."""
    fetched(pair)
    loading = "Loading and compiling the models, a minute or more" if pair.compile else "Loading the models"
    with stderr.status(loading):
        return SSDEngine.from_spec(pair)


def silence_transformers() -> None:
    """Transformers' own bars and warnings would run into the answer."""
    import warnings

    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
