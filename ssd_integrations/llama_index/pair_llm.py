"""What an SSDLLM is made of: the fields that it shares with ChatSSD, as LlamaIndex has them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Self

from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
from llama_index.core.llms.function_calling import FunctionCallingLLM

from ssd_engine.engine import Engine
from ssd_engine.errors import InvalidRequestError
from ssd_integrations.pair_fields import LOAD_FIELDS, PairFields


class PairLLM(PairFields, FunctionCallingLLM):
    """An LLM's fields: which pair it loads, and what its requests have in common."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    temperature: float = Field(default=0.0, description="0 is greedy; above, tokens are sampled.")
    is_function_calling_model: bool = Field(
        default=True, description="False has LlamaIndex describe tools in prose (ReAct) instead of the chat template."
    )

    _engine: Engine | None = PrivateAttr(default=None)
    _is_engine_given: bool = PrivateAttr(default=False)

    def __init__(self, *, engine: Engine | None = None, **fields: Any) -> None:
        """Takes the fields above and those of LlamaIndex's `LLM`, or an `engine` that is loaded already.

        Raises:
            InvalidRequestError: an unusable setting, or an engine together with the name of a pair.
        """
        super().__init__(**fields)
        self._engine = engine
        self._is_engine_given = engine is not None
        self._check()

    def _check(self) -> None:
        """Raise `InvalidRequestError` for settings that no request could use, or that contradict each other."""
        self._require_one_source(has_engine=self._is_engine_given)
        self._params({})

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other values for some fields, checked as a new object is; it shares the models of the same pair.

        Raises:
            InvalidRequestError: a field that is not there, or an unusable value.
        """
        changes = update or {}
        if unknown := sorted(changes.keys() - type(self).model_fields.keys()):
            raise InvalidRequestError(f"SSDLLM has no field {unknown[0]!r}; leave it out of the update")
        copied = super().model_copy(update=changes, deep=deep)
        if not self._is_engine_given and changes.keys() & {*LOAD_FIELDS, "config", "base_url", "api_key"}:
            copied._engine = None
        copied._check()
        return copied

    def load(self) -> Engine:
        """The engine behind this LLM, loaded if it was not yet, or anew where it was closed.

        Requests load it at their first need. An engine that was given stays the one, closed or not.
        """
        engine = self._loaded
        if engine is None:
            engine = self._engine = self._shared_engine()
        return engine

    @property
    def _loaded(self) -> Engine | None:
        """The engine, where there is one that answers or one that was given."""
        engine = self._engine
        return engine if engine is not None and (self._is_engine_given or not engine.is_closed) else None

    @property
    def engine(self) -> Engine:
        """`load()`, as an attribute."""
        return self.load()

    @property
    def tokenizer(self) -> Callable[[str], list[int]]:
        """Ids of a text in the target's vocabulary: `Settings.tokenizer = llm.tokenizer` packs prompts by them.

        LlamaIndex's own default counts other tokens, of which numbers have a third as many.
        """
        return self.engine.encode

    async def _aengine(self) -> Engine:
        """`load`, without blocking the event loop while models load."""
        engine = self._loaded
        return await asyncio.to_thread(self.load) if engine is None else engine

    def to_payload(self) -> dict[str, Any]:
        """What callbacks are told of this LLM. It never loads models: async calls ask for it on the event loop."""
        if self._loaded is None:
            return {"class_name": self.class_name(), "model_name": self.model or self._pair_name}
        return super().to_payload()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy that shares the loaded models."""
        memo = {} if memo is None else memo
        memo[id(self._engine)] = self._engine
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[str, Any]:
        """Names and settings; the other process loads the models, and has callbacks of its own."""
        if self._is_engine_given:
            raise TypeError(
                "SSDLLM(engine=...) holds models in memory and cannot be pickled; "
                "name the pair instead: SSDLLM(model=..., draft=...) or SSDLLM(preset=...)."
            )
        process_bound = ("callback_manager", "rate_limiter")
        return {"__dict__": {name: value for name, value in self.__dict__.items() if name not in process_bound}}
