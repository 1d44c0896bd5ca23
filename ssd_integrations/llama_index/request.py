"""One call of the LLM as the engine takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

from ssd_engine.config import GenerationParams


class EngineArguments(TypedDict):
    """Arguments that `generate`, `stream`, `agenerate` and `astream` of the engine share."""

    prompt: str | list[dict[str, Any]]
    params: GenerationParams
    tools: list[dict[str, Any]] | None


@dataclass(frozen=True)
class Request:
    """One call: what the engine is asked."""

    prompt: str | list[dict[str, Any]]
    params: GenerationParams
    tools: list[dict[str, Any]] | None = None

    @property
    def arguments(self) -> EngineArguments:
        return {"prompt": self.prompt, "params": self.params, "tools": self.tools}


def generation_params(fields: dict[str, Any], overrides: dict[str, Any]) -> GenerationParams:
    """Settings of one call: `overrides` go before `fields`, and None leaves the engine's default.

    Raises:
        InvalidRequestError: an unknown name, or an unusable value.
    """
    settings = _with_engine_names(fields) | _with_engine_names(overrides)
    return GenerationParams(**{name: value for name, value in settings.items() if value is not None})


def _with_engine_names(settings: dict[str, Any]) -> dict[str, Any]:
    """LlamaIndex says `max_tokens` where the engine says `max_new_tokens`."""
    return {"max_new_tokens" if name == "max_tokens" else name: value for name, value in settings.items()}
