"""What a ChatSSD is made of: a pair of models, and the settings of its requests."""

from __future__ import annotations

from typing import Any, Self

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.model_profile import ModelProfile
from pydantic import Field, PrivateAttr, SecretStr, model_validator

from ssd_engine.config import Decoding, GenerationParams, OnRisk, SSDConfig
from ssd_engine.engine import SSDEngine
from ssd_engine.errors import InvalidRequestError
from ssd_engine.loading import shared_engine
from ssd_engine.models.presets import PRESETS, default_preset
from ssd_engine.remote.engine import shared_remote_engine

_LOAD_FIELDS = (
    "preset",
    "draft",
    "draft_adapter",
    "dtype",
    "device",
    "target_quantization",
    "draft_quantization",
    "max_batch_size",
    "compile",
)


class PairModel(BaseChatModel):
    """A chat model's fields: which pair it loads, and what its requests have in common."""

    model: str | None = Field(None, description="Target model: hub id, folder or GGUF file; None: a preset's.")
    draft: str | None = Field(None, description="Small safe draft model of the same vocabulary; goes with `model`.")
    draft_adapter: str | None = Field(
        None, description="PEFT adapter to merge into the draft; None: the preset's, if it has one; 'none' for none."
    )
    preset: str | None = Field(None, description="Named pair; None: the one that SSD_PRESET names, or the default.")
    base_url: str | None = Field(None, description="A server that `ssd serve` started, instead of a pair here.")
    api_key: SecretStr | None = Field(None, description="The server's key; None: that in SSD_API_KEY.")
    engine: SSDEngine | None = Field(None, exclude=True, description="A loaded engine, instead of naming a pair.")
    dtype: str | None = Field(None, description="Weights' dtype; None: the checkpoint's own.")
    device: str | None = Field(None, description="Where the models run; None: an accelerator if there is one.")
    target_quantization: str | None = Field(None, description='"int8" for the target on the CPU.')
    draft_quantization: str | None = Field(None, description='"int8" for the draft on the CPU.')
    max_batch_size: int | None = Field(None, ge=1, description="Most requests that decode together; None: 8.")
    compile: bool | None = Field(None, description="Decode through torch.compile: faster, ready a minute later.")
    config: SSDConfig | None = Field(None, description="Settings of the algorithm; None: the engine's.")
    decoding: Decoding = Field("ssd", description='"ssd", or a baseline: "speculative", "target".')
    temperature: float | None = Field(None, description="0 or None is greedy.")
    max_tokens: int | None = Field(None, description="Most tokens to generate.")
    top_p: float | None = Field(None, description="Nucleus kept when sampling.")
    top_k: int | None = Field(None, description="Most likely tokens kept when sampling.")
    stop: list[str] | str | None = Field(None, description="Strings that end the answer.")
    seed: int | None = Field(None, description="Seed of each request's random numbers.")
    timeout: float | None = Field(None, description="Seconds that a request may take.")
    logprobs: bool | None = Field(None, description="Log-probabilities in `response_metadata`.")
    top_logprobs: int | None = Field(None, description="Alternatives reported with `logprobs`.")
    on_risk: OnRisk = Field(
        "annotate",
        description='Once Union has held for `risk_bins` bins: "annotate" (metadata alone), "refuse", "raise", or a '
        "function that gets the trace at each bin and returns one of these.",
    )
    risk_bins: int | None = Field(None, description="Bins under Union that `on_risk` allows; None: 2.")
    refusal_text: str | None = Field(None, description='What a refused answer ends with, under `on_risk="refuse"`.')

    _engine: SSDEngine | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.engine is not None and (self.model or self.draft or self.preset):
            raise InvalidRequestError("engine= is a loaded pair; leave out model, draft and preset")
        if self.base_url is not None:
            here = [name for name in ("engine", *_LOAD_FIELDS) if getattr(self, name) is not None]
            if here:
                raise InvalidRequestError(f"base_url={self.base_url!r} has its pair; leave out {', '.join(here)}")
        elif self.engine is None and self.model is None and self.preset is None:
            self.preset = default_preset()
        self._params(None, {})  # mistakes in the settings show here, not at the first request
        return self

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Settings can be saved and loaded again; a loaded `engine` cannot."""
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        return ["ssd_integrations", "langchain"]

    @property
    def lc_secrets(self) -> dict[str, str]:
        """What is never saved, and where it is looked up again."""
        return {} if self.api_key is None else {"api_key": "SSD_API_KEY"}

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """What is saved in another form than it was given."""
        return {} if self.config is None else {"config": self.config.model_dump()}

    @property
    def model_name(self) -> str:
        """What responses and traces call this pair."""
        if self.engine is not None:
            return self.engine.name
        if self.base_url is not None:
            return self.model or self.base_url
        return f"{self.model} + {self.draft}" if self.model else str(self.preset)

    def _resolve_model_profile(self) -> ModelProfile:
        # Agents look here before they ask for structured output the direct way.
        return ModelProfile(
            text_inputs=True, text_outputs=True, tool_calling=True, tool_choice=True, structured_output=True
        )

    @property
    def _llm_type(self) -> str:
        return "chat-ssd"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        settings = self.model_dump(include=set(_LOAD_FIELDS), exclude_none=True)
        return {"model_name": self.model_name, **settings, **self._params(None, {}).model_dump(mode="json")}

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        # A cache tells models apart by this; what is saved of a model names neither its engine nor its function.
        held = [self.model_name, *(id(value) for value in (self.engine, self.on_risk) if not isinstance(value, str))]
        return f"{super()._get_llm_string(stop, **kwargs)}---{held}"

    def load(self) -> SSDEngine:
        """The engine behind this model, loaded if it was not yet. Requests load it at their first need."""
        if self.engine is not None:
            return self.engine
        if self.base_url is not None:
            if self._engine is None or self._engine.is_closed:
                key = self.api_key.get_secret_value() if self.api_key else None
                self._engine = shared_remote_engine(self.base_url, key, self.model)
        elif self._engine is None or self._engine.is_closed:
            options = {name: getattr(self, name) for name in _LOAD_FIELDS}
            self._engine = shared_engine(target=self.model, **options)
        return self._engine

    def _for_call(self, kwargs: dict[str, Any]) -> Self:
        """This model, or the pair that a call names instead: a preset, or a target for the same draft or another."""
        name = kwargs.pop("model", None)
        if name is None or name == self.model_name:
            return self
        if self.base_url is not None:
            other = self.model_copy(update={"model": name})
            other._engine = None
            return other
        draft = kwargs.pop("draft", self.draft)
        pair = {"preset": name} if name in PRESETS else {"preset": None, "model": name, "draft": draft}
        other = self.model_copy(update={"engine": None, "model": None, "draft": None, **pair})
        other._engine = None
        return other

    def _params(self, stop: list[str] | None, overrides: dict[str, Any]) -> GenerationParams:
        """This model's settings with a call's own over them; an unknown name raises `InvalidRequestError`."""
        settings: dict[str, Any] = {
            "decoding": self.decoding,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "stop": stop if stop is not None else self.stop,
            "seed": self.seed,
            "timeout": self.timeout,
            "logprobs": self.logprobs,
            "top_logprobs": self.top_logprobs,
            "on_risk": self.on_risk,
            "risk_bins": self.risk_bins,
            "refusal_text": self.refusal_text,
            "ssd": self.config,
            **overrides,
        }
        settings["max_new_tokens"] = settings.pop("max_tokens")
        return GenerationParams(**{name: value for name, value in settings.items() if value is not None})
