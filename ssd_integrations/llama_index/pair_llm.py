"""What an SSDLLM is made of: a pair of models, and the settings of its requests."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Self

from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr, SecretStr
from llama_index.core.llms.function_calling import FunctionCallingLLM

from ssd_engine.config import Decoding, GenerationParams, OnRisk, SSDConfig
from ssd_engine.engine import SSDEngine
from ssd_engine.errors import InvalidRequestError
from ssd_engine.loading import shared_engine
from ssd_engine.models.presets import default_preset
from ssd_engine.remote.engine import shared_remote_engine
from ssd_integrations.llama_index.request import generation_params

_PAIR_FIELDS = (
    "preset",
    "model",
    "draft",
    "draft_adapter",
    "dtype",
    "device",
    "device_map",
    "target_quantization",
    "draft_quantization",
    "max_batch_size",
    "compile",
)
_REQUEST_FIELDS = (
    "temperature",
    "max_tokens",
    "top_p",
    "top_k",
    "stop",
    "seed",
    "timeout",
    "decoding",
    "on_risk",
    "risk_bins",
    "refusal_text",
)


class PairLLM(FunctionCallingLLM):
    """An LLM's fields: which pair it loads, and what its requests have in common."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    base_url: str | None = Field(default=None, description="A server that `ssd serve` started, instead of a pair here.")
    api_key: SecretStr | None = Field(
        default=None, exclude=True, description="The server's key; None: that in SSD_API_KEY."
    )
    preset: str | None = Field(default=None, description="A named pair, instead of model and draft.")
    model: str | None = Field(default=None, description="Target: hub id, folder or GGUF file.")
    draft: str | None = Field(default=None, description="Draft: hub id, folder or GGUF file.")
    draft_adapter: str | None = Field(
        default=None,
        description="PEFT adapter to merge into the draft; None: the preset's, if it has one; 'none' for none.",
    )
    dtype: str | None = Field(default=None, description="Type of the weights; None: the checkpoint's own.")
    device: str | None = Field(
        default=None, description="Where the models run, such as 'cpu'; None: an accelerator if there is one."
    )
    device_map: str | dict[str, Any] | None = Field(default=None, description="As transformers takes it.")
    target_quantization: str | None = Field(default=None, description="None, or 'int8' on CPU.")
    draft_quantization: str | None = Field(default=None, description="None, or 'int8' on CPU.")
    max_batch_size: int | None = Field(default=None, ge=1, description="Most requests that decode together; None: 8.")
    compile: bool | None = Field(
        default=None, description="Decode through torch.compile: faster, ready a minute later."
    )
    config: SSDConfig | None = Field(default=None, description="SSD settings; None: the engine's or preset's own.")

    temperature: float = Field(default=0.0, description="0 is greedy; above, tokens are sampled.")
    max_tokens: int | None = Field(default=None, description="Most tokens to generate; None: the engine's default.")
    top_p: float | None = Field(default=None, description="Nucleus that is sampled from, in (0, 1].")
    top_k: int | None = Field(default=None, description="Most likely tokens that are sampled from.")
    stop: str | list[str] | None = Field(default=None, description="Strings that end an answer; never part of it.")
    seed: int | None = Field(default=None, description="Seed of each call's own random numbers.")
    timeout: float | None = Field(default=None, description="Seconds after which a call fails.")
    decoding: Decoding = Field(default="ssd", description="'ssd', or a baseline: 'speculative' or 'target'.")
    on_risk: OnRisk = Field(
        default="annotate",
        description="Once Union has held for `risk_bins` bins: 'annotate' (in `raw` alone), 'refuse', 'raise', or a "
        "function that gets the trace at each bin and returns one of these.",
    )
    risk_bins: int | None = Field(default=None, description="Bins under Union that `on_risk` allows; None: 2.")
    refusal_text: str | None = Field(default=None, description="What an answer that is refused ends with.")
    is_function_calling_model: bool = Field(
        default=True, description="False has LlamaIndex describe tools in prose (ReAct) instead of the chat template."
    )

    _engine: SSDEngine | None = PrivateAttr(default=None)
    _is_engine_given: bool = PrivateAttr(default=False)

    def __init__(self, *, engine: SSDEngine | None = None, **fields: Any) -> None:
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
        if self._is_engine_given and self._pair:
            settings = ", ".join(f"{name}={value!r}" for name, value in self._pair.items())
            raise InvalidRequestError(
                f"SSDLLM got engine= and {settings}; an engine has its models already. Leave one or the other out."
            )
        if self.base_url is not None and (self._is_engine_given or self._pair.keys() - {"model"}):
            here = ", ".join(["engine"] if self._is_engine_given else self._pair)
            raise InvalidRequestError(f"base_url={self.base_url!r} has its pair; leave out {here}")
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
        if not self._is_engine_given and changes.keys() & {*_PAIR_FIELDS, "base_url", "api_key"}:
            copied._engine = None
        copied._check()
        return copied

    @property
    def _pair(self) -> dict[str, Any]:
        """What was said of the models."""
        values = {name: getattr(self, name) for name in _PAIR_FIELDS}
        return {name: value for name, value in values.items() if value is not None}

    def load(self) -> SSDEngine:
        """The engine behind this LLM, loaded if it was not yet, or anew where it was closed.

        Requests load it at their first need. An engine that was given stays the one, closed or not.
        """
        engine = self._loaded
        if engine is None:
            engine = self._engine = self._load()
        return engine

    def _load(self) -> SSDEngine:
        pair = self._pair
        if self.base_url is None:
            return shared_engine(target=pair.pop("model", None), **pair)
        key = self.api_key.get_secret_value() if self.api_key else None
        return shared_remote_engine(self.base_url, key, self.model)

    @property
    def _loaded(self) -> SSDEngine | None:
        """The engine, where there is one that answers or one that was given."""
        engine = self._engine
        return engine if engine is not None and (self._is_engine_given or not engine.is_closed) else None

    @property
    def engine(self) -> SSDEngine:
        """`load()`, as an attribute."""
        return self.load()

    async def _aengine(self) -> SSDEngine:
        """`load`, without blocking the event loop while models load."""
        engine = self._loaded
        return await asyncio.to_thread(self.load) if engine is None else engine

    def to_payload(self) -> dict[str, Any]:
        """What callbacks are told of this LLM. It never loads models: async calls ask for it on the event loop."""
        if self._loaded is None:
            return {
                "class_name": self.class_name(),
                "model_name": self.model or self.base_url or self.preset or default_preset(),
            }
        return super().to_payload()

    def _params(self, overrides: dict[str, Any]) -> GenerationParams:
        fields = {name: getattr(self, name) for name in _REQUEST_FIELDS}
        return generation_params({**fields, "ssd": self.config}, overrides)

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
