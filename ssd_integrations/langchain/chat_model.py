"""ChatSSD, a LangChain chat model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, closing
from typing import Any, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field, model_validator

from ssd_engine.config import Decoding, GenerationParams, SSDConfig
from ssd_engine.engine import SSDEngine, shared_engine
from ssd_engine.errors import InvalidRequestError
from ssd_engine.result import GenerationResult, Piece
from ssd_integrations.langchain.messages import to_ai_message, to_engine_messages, to_message_chunk

ToolLike = dict[str, Any] | type | Callable[..., Any] | BaseTool
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


class ChatSSD(BaseChatModel):
    """A chat model that answers by Speculative Safety-Aware Decoding, on this machine.

    Setup:
        ```bash
        pip install "ssd-integrations[langchain]"
        ```

    Instantiate:
        ```python
        from ssd_integrations.langchain import ChatSSD

        model = ChatSSD()  # the default pair, fetched once
        model = ChatSSD(model="org/large", draft="org/small-safe")  # any pair of one vocabulary
        model = ChatSSD(engine=engine)  # an engine that is shared
        ```
        Instances that name the same pair share one loaded engine.

    Invoke:
        ```python
        answer = model.invoke("Name three rivers in France.")
        answer.content, answer.usage_metadata, answer.response_metadata["ssd"]
        ```

    Stream:
        ```python
        for chunk in model.stream("Name three rivers in France."):
            print(chunk.text, end="", flush=True)
        ```

    Async:
        ```python
        await model.ainvoke("...")
        async for chunk in model.astream("..."): ...
        ```

    Batch:
        ```python
        model.batch(["...", "..."])  # decoded together, as are calls from several threads or tasks
        ```

    Tools:
        ```python
        @tool
        def population(city: str) -> int:
            "Inhabitants of a city."

        model.bind_tools([population]).invoke("How many people live in Lyon?").tool_calls
        ```

    Response metadata:
        `model_name`, `finish_reason`, and `ssd`: the trace's summary with `risk` ("none" or "elevated"), match ratios,
        thresholds, share of tokens under Union, and tokens a round.
    """

    model: str | None = Field(None, description="Target model: hub id, folder or GGUF file; None: a preset's.")
    draft: str | None = Field(None, description="Small safe draft model of the same vocabulary; goes with `model`.")
    draft_adapter: str | None = Field(None, description="PEFT adapter to merge into the draft.")
    preset: str | None = Field(None, description="Named pair, when `model` is not given; None: the default pair.")
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

    @model_validator(mode="after")
    def _check(self) -> ChatSSD:
        if self.engine is not None and (self.model or self.draft or self.preset):
            raise InvalidRequestError("engine= is a loaded pair; leave out model, draft and preset")
        self._params(None, {})  # mistakes in the settings show here, not at the first request
        return self

    @property
    def model_name(self) -> str:
        """What responses and traces call this pair."""
        if self.engine is not None:
            return self.engine.name
        return f"{self.model} + {self.draft}" if self.model else self.preset or "default"

    @property
    def _llm_type(self) -> str:
        return "chat-ssd"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        settings = self.model_dump(include=set(_LOAD_FIELDS), exclude_none=True)
        return {"model_name": self.model_name, **settings, **self._params(None, {}).model_dump(mode="json")}

    def load(self) -> SSDEngine:
        """The engine behind this model, loaded if it was not yet. Requests load it at their first need."""
        engine = self.engine
        if engine is None:
            options = {name: getattr(self, name) for name in _LOAD_FIELDS}
            engine = self.engine = shared_engine(target=self.model, **options)
        return engine

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
            "ssd": self.config,
            **overrides,
        }
        settings["max_new_tokens"] = settings.pop("max_tokens")
        return GenerationParams(**{name: value for name, value in settings.items() if value is not None})

    def _request(self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the engine's methods for one call."""
        tools = _offered(kwargs.pop("tools", None), kwargs.pop("tool_choice", None))
        kwargs.pop("strict", None), kwargs.pop("parallel_tool_calls", None)
        return {"prompt": to_engine_messages(messages), "params": self._params(stop, kwargs), "tools": tools}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._chat_result(self.load().generate(**self._request(messages, stop, kwargs)))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        engine = await self._aload()
        return self._chat_result(await engine.agenerate(**self._request(messages, stop, kwargs)))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        calls = 0
        with closing(self.load().stream(**self._request(messages, stop, kwargs))) as pieces:
            for piece in pieces:
                chunk = self._chunk(piece, calls)
                calls += len(piece.tool_calls) + len(piece.invalid_tool_calls)
                if run_manager:
                    run_manager.on_llm_new_token(piece.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        calls = 0
        engine = await self._aload()
        async with aclosing(engine.astream(**self._request(messages, stop, kwargs))) as pieces:
            async for piece in pieces:
                chunk = self._chunk(piece, calls)
                calls += len(piece.tool_calls) + len(piece.invalid_tool_calls)
                if run_manager:
                    await run_manager.on_llm_new_token(piece.text, chunk=chunk)
                yield chunk

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

    def _chat_result(self, result: GenerationResult) -> ChatResult:
        info = {"finish_reason": result.finish_reason}
        return ChatResult(
            generations=[ChatGeneration(message=to_ai_message(result, self.model_name), generation_info=info)],
            llm_output={"model_name": self.model_name},
        )

    def _chunk(self, piece: Piece, first_call: int) -> ChatGenerationChunk:
        return ChatGenerationChunk(message=to_message_chunk(piece, self.model_name, first_call))

    async def _aload(self) -> SSDEngine:
        # Loading takes seconds to minutes; the event loop goes on meanwhile.
        return await asyncio.to_thread(self.load) if self.engine is None else self.engine

    def bind_tools(
        self,
        tools: Sequence[ToolLike],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools to the model.

        Args:
            tools: tools, functions, pydantic classes or OpenAI-style specifications.
            tool_choice: "auto" or None: the model decides; "none": no tool is offered; a tool's name: only that one is.
                "any", "required" and True offer all; whether one is called is still the model's decision.
        """
        specifications = [convert_to_openai_tool(tool) for tool in tools]
        _offered(specifications, tool_choice)
        return self.bind(tools=specifications, tool_choice=tool_choice, **kwargs)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "ssd"
        params["ls_model_name"] = self.model_name
        return params

    def get_token_ids(self, text: str) -> list[int]:
        """Ids of `text` in the target's tokenizer."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return list(self.load().tokenizer(text, add_special_tokens=False).input_ids)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[ToolLike] | None = None) -> int:
        """Tokens of the prompt that `messages` and `tools` make, chat template included."""
        specifications = [convert_to_openai_tool(tool) for tool in tools or ()]
        return self.load().count_tokens(to_engine_messages(messages), tools=specifications or None)


def _offered(
    tools: Sequence[dict[str, Any]] | None, tool_choice: str | dict[str, Any] | bool | None
) -> list[dict[str, Any]] | None:
    """The tools that go into the prompt."""
    if not tools or tool_choice in ("none", False):
        return None
    if tool_choice in (None, "auto", "any", "required", True):
        return list(tools)
    name = tool_choice["function"]["name"] if isinstance(tool_choice, dict) else tool_choice
    named = [tool for tool in tools if tool["function"]["name"] == name]
    if not named:
        offered = ", ".join(tool["function"]["name"] for tool in tools)
        raise InvalidRequestError(f"tool_choice={name!r} is not among the tools: {offered}")
    return named
