"""What a ChatSSD is made of: the fields that it shares with SSDLLM, and how LangChain comes to its answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, Self, cast

from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list
from pydantic import Field, PrivateAttr, model_validator

from ssd_engine.config import API_KEY_VARIABLE
from ssd_engine.engine import Engine
from ssd_engine.models.presets import PRESETS, default_preset
from ssd_integrations.langchain.events import areporting, reporting
from ssd_integrations.pair_fields import LOAD_FIELDS, PairFields


class PairModel(PairFields, BaseChatModel):
    """A chat model's fields: which pair it loads, and what its requests have in common."""

    engine: Engine | None = Field(None, exclude=True, description="A loaded engine, instead of naming a pair.")

    streaming: bool = Field(default=False, description="Have `invoke` stream too, for callbacks that want pieces.")
    max_retries: int | None = Field(
        None,
        ge=0,
        description="Taken since LangChain gives it to every model; without effect: models here need no retries, and a "
        "server that is busy is asked again anyway.",
    )

    _engine: Engine | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._require_one_source(has_engine=self.engine is not None)
        if self.engine is None and self.base_url is None and self.model is None and self.preset is None:
            self.preset = default_preset()
        self._params({})  # mistakes in the settings show here, not at the first request
        return self

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Settings can be saved and loaded again; a loaded `engine` cannot."""
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Where saved settings say that the class is."""
        return ["ssd_integrations", "langchain"]

    @property
    def lc_secrets(self) -> dict[str, str]:
        """What is never saved, and where it is looked up again."""
        return {} if self.api_key is None else {"api_key": API_KEY_VARIABLE}

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """What is saved in another form than it was given."""
        return {} if self.config is None else {"config": self.config.model_dump()}

    @property
    def model_name(self) -> str:
        """What responses and traces call this pair."""
        return self._pair_name if self.engine is None else self.engine.name

    def _resolve_model_profile(self) -> ModelProfile:
        # Agents look here before they ask for structured output the direct way, or shorten a long history.
        profile = ModelProfile(
            text_inputs=True, text_outputs=True, tool_calling=True, tool_choice=True, structured_output=True
        )
        limit = self._context_length
        return profile if limit is None else {**profile, "max_input_tokens": limit, "max_output_tokens": limit}

    @property
    def _context_length(self) -> int | None:
        """Most tokens of prompt and answer, as far as that is known without loading anything."""
        if self.engine is not None:
            return self.engine.context_length
        return None if self.base_url is not None else self._pair_spec.context_length

    @property
    def _llm_type(self) -> str:
        return "chat-ssd"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        settings = self.model_dump(include=set(LOAD_FIELDS) - {"model"}, exclude_none=True)
        return {"model_name": self.model_name, **settings, **self._params({}).model_dump(mode="json")}

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        # A cache tells models apart by this; what is saved of a model names neither its engine nor its function.
        held = [self.model_name, *(id(value) for value in (self.engine, self.on_risk) if not isinstance(value, str))]
        return f"{super()._get_llm_string(stop, **kwargs)}---{held}"

    def load(self) -> Engine:
        """The engine behind this model, loaded if it was not yet. Requests load it at their first need."""
        if self.engine is not None:
            return self.engine
        if self._engine is None or self._engine.is_closed:
            self._engine = self._shared_engine()
            limit = self._engine.context_length
            if limit is not None:
                self.profile = {"max_input_tokens": limit, "max_output_tokens": limit, **(self.profile or {})}
        return self._engine

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy that shares the loaded models."""
        memo = {} if memo is None else memo
        memo |= {id(engine): engine for engine in (self.engine, self._engine)}
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[Any, Any]:
        """Names and settings; the other process loads the models."""
        if self.engine is not None:
            raise TypeError(
                "ChatSSD(engine=...) holds models in memory and cannot be pickled; "
                "name the pair instead: ChatSSD(model=..., draft=...) or ChatSSD(preset=...)"
            )
        state = super().__getstate__()
        private = state["__pydantic_private__"]
        return {**state, "__pydantic_private__": private and {**private, "_engine": None}}

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

    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """Answer; `on_risk` and scheme switches are reported to callbacks."""
        return super().invoke(input, reporting(config, self.callbacks), **kwargs)

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """`invoke`, for an event loop."""
        return await super().ainvoke(input, areporting(config, self.callbacks), **kwargs)

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        """Answer in chunks, as they are decoded."""
        return super().stream(input, reporting(config, self.callbacks), **kwargs)

    def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        """`stream`, for an event loop."""
        return super().astream(input, areporting(config, self.callbacks), **kwargs)

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Answer several inputs together; `max_concurrency` in the config limits how many are under way."""
        # LangChain's own limit is the number of cores and four; here waiting costs a thread nothing, and all that
        # arrive decode together.
        configs = [
            {**each, "max_concurrency": each.get("max_concurrency") or len(inputs)}
            for each in get_config_list(config, len(inputs))
        ]
        return super().batch(
            inputs, cast("list[RunnableConfig]", configs), return_exceptions=return_exceptions, **kwargs
        )
