"""What ChatSSD and SSDLLM have in common: their fields, how these are checked, and how an engine comes of them."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from pydantic import Field, SecretStr, model_validator

from ssd_engine.config import Decoding, GenerationParams, OnRisk, SSDConfig, UnsupportedContent
from ssd_engine.engine import Engine
from ssd_engine.errors import InvalidRequestError
from ssd_engine.models.pair import PairOptions, PairSpec
from ssd_engine.models.presets import default_preset
from ssd_engine.registry import shared_engine
from ssd_engine.remote.engine import shared_remote_engine

LOAD_FIELDS = ("model", *(name for name in PairOptions.model_fields if name != "config"))
"""What says which pair is loaded, and how. Settings of the algorithm go with each request, so that models that differ
in these alone share an engine."""
_REQUEST_FIELDS = (
    "decoding",
    "temperature",
    "top_p",
    "top_k",
    "stop",
    "seed",
    "timeout",
    "logprobs",
    "top_logprobs",
    "on_risk",
    "risk_bins",
    "refusal_text",
    "reasoning",
    "unsupported_content",
)
_SETTINGS_FIELDS = ("num_draft_tokens", "draft_system_prompt")
"""Fields that are settings of the algorithm too, and hold whatever `config` says."""


class PairFields(PairOptions):
    """A pair of models or a server, and the settings of its requests."""

    model: str | None = Field(
        None, description="Target, the large model: hub id, folder or GGUF file; goes with `draft`. None: a preset's."
    )
    base_url: str | None = Field(None, description="A server that `ssd serve` started, instead of a pair here.")
    api_key: SecretStr | None = Field(
        None, exclude=True, description="The server's key; None: that in the environment variable SSD_API_KEY."
    )
    decoding: Decoding = Field("ssd", description="'ssd', or a baseline: 'speculative' or 'target'.")
    temperature: float | None = Field(None, description="0 or None is greedy; above, tokens are sampled.")
    max_tokens: int | None = Field(None, description="Most tokens to generate; None: the engine's default.")
    top_p: float | None = Field(None, description="Nucleus that is sampled from, in (0, 1].")
    top_k: int | None = Field(None, description="Most likely tokens that are sampled from.")
    stop: list[str] | str | None = Field(None, description="Strings that end an answer; never part of it.")
    seed: int | None = Field(None, description="Seed of each request's own random numbers.")
    timeout: float | None = Field(None, description="Seconds after which a request fails.")
    logprobs: bool | None = Field(None, description="Report the log-probability of each token.")
    top_logprobs: int | None = Field(None, description="Likeliest alternatives that are reported with `logprobs`.")
    on_risk: OnRisk = Field(
        "annotate",
        description="Once Union has held for `risk_bins` bins: 'annotate' (in the response's metadata alone), "
        "'refuse', 'raise', or a function that gets the trace at each bin and returns one of these.",
    )
    risk_bins: int | None = Field(None, description="Bins under Union that `on_risk` allows; None: 2.")
    refusal_text: str | None = Field(None, description="What an answer that is refused ends with.")
    reasoning: bool | str | None = Field(
        None,
        description="Of models that reason before they answer: whether they do, or how much ('low', 'medium', 'high'); "
        "None: as the chat template has it.",
    )
    unsupported_content: UnsupportedContent | None = Field(
        None,
        description="'placeholder' puts a note in the place of images, audio and files of a user, which the models "
        "cannot read; None: they are an error.",
    )

    @model_validator(mode="before")
    @classmethod
    def _known_names(cls, given: Any) -> Any:
        """Take transformers' name for `max_tokens`, and refuse names that mean nothing, as calls do."""
        if not isinstance(given, dict):
            return given
        if "max_new_tokens" in given:
            if given.get("max_tokens") is not None:
                raise InvalidRequestError(
                    f"max_tokens={given['max_tokens']!r} and max_new_tokens={given['max_new_tokens']!r} are one "
                    "setting; give one of them"
                )
            given = {**given, "max_tokens": given["max_new_tokens"]}
            del given["max_new_tokens"]
        known = {name for field, info in cls.model_fields.items() for name in (field, info.alias) if name}
        for name in sorted(given.keys() - known):
            near = get_close_matches(name, sorted(known), n=1)
            advice = f"is {near[0]!r} meant?" if near else "leave it out"
            raise InvalidRequestError(f"{cls.__name__} has no field {name!r}; {advice}")
        return given

    @property
    def _named_pair(self) -> dict[str, Any]:
        """What was said of the pair that is to be loaded."""
        return {name: value for name in LOAD_FIELDS if (value := getattr(self, name)) is not None}

    def _require_one_source(self, *, has_engine: bool) -> None:
        """Raise `InvalidRequestError` where more than one of an engine, a server and a pair is given."""
        named = self._named_pair
        if has_engine and named:
            given = ", ".join(f"{name}={value!r}" for name, value in named.items())
            raise InvalidRequestError(
                f"engine= and {given}: an engine has its models already; leave out {', '.join(named)}, or the engine"
            )
        here = [*(["engine"] if has_engine else []), *(name for name in named if name != "model")]
        if self.base_url is not None and here:
            raise InvalidRequestError(f"base_url={self.base_url!r} has its pair; leave out {', '.join(here)}")

    @property
    def _pair_name(self) -> str:
        """What the pair, or the server's model, is called before anything is loaded."""
        if self.base_url is not None:
            return self.model or self.base_url
        return f"{self.model} + {self.draft}" if self.model else self.preset or default_preset()

    def _shared_engine(self) -> Engine:
        """The process's one engine for this server or this pair, loaded if it was not yet.

        Raises:
            InvalidRequestError, ModelLoadError: the pair cannot be loaded, or the server cannot be reached.
        """
        if self.base_url is not None:
            key = self.api_key.get_secret_value() if self.api_key else None
            return shared_remote_engine(self.base_url, key, self.model)
        return shared_engine(self._pair_spec)

    @property
    def _pair_spec(self) -> PairSpec:
        """The pair that is loaded here."""
        named = self._named_pair
        # vLLM drafts as many tokens as its settings say when it starts.
        config = self.config if self.backend == "vllm" else None
        return PairSpec(target=named.pop("model", None), config=config, **named)

    def _params(self, overrides: dict[str, Any]) -> GenerationParams:
        """The fields with a call's own settings over them; None leaves the engine's default.

        Raises:
            InvalidRequestError: an unknown name, or an unusable value.
        """
        settings = {name: getattr(self, name) for name in _REQUEST_FIELDS}
        settings |= {"max_new_tokens": self.max_tokens, "ssd": self._ssd_config}
        settings |= {"max_new_tokens" if name == "max_tokens" else name: value for name, value in overrides.items()}
        return GenerationParams(**{name: value for name, value in settings.items() if value is not None})

    @property
    def _ssd_config(self) -> SSDConfig | None:
        if self.config is None:
            return None
        changes = {name: value for name in _SETTINGS_FIELDS if (value := getattr(self, name)) is not None}
        return self.config.replaced(**changes)
