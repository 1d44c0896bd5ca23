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
        """What `generate` and its kind are called with."""
        return {"prompt": self.prompt, "params": self.params, "tools": self.tools}
