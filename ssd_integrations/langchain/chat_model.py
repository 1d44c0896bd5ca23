"""ChatSSD, a LangChain chat model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, closing
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable

from ssd_engine.answers.result import Piece
from ssd_engine.config import GenerationParams
from ssd_engine.engine import Engine
from ssd_engine.errors import InvalidRequestError
from ssd_engine.prompts.prompt import offered_tools
from ssd_integrations.langchain.errors import langchain_errors
from ssd_integrations.langchain.events import ChunkOfPiece, areport_risk, report_risk
from ssd_integrations.langchain.messages import to_ai_message, to_engine_messages, to_message_chunk
from ssd_integrations.langchain.pair_model import PairModel
from ssd_integrations.langchain.response_format import (
    Schema,
    json_schema_format,
    json_schema_of,
    to_grammar,
    with_schema,
)
from ssd_integrations.langchain.structured_output import answer_parser, call_parser, structured
from ssd_integrations.langchain.tools import ToolLike, tool_specification
from ssd_integrations.notes import with_note


class ChatSSD(PairModel):
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
        model.bind_tools([population], tool_choice="any")  # some tool is called, with valid arguments
        ```

    Structured output:
        ```python
        class City(BaseModel):
            name: str
            inhabitants: int

        model.with_structured_output(City).invoke("Tell me about Lyon.")  # City(name="Lyon", inhabitants=522000)
        ```
        Decoding is constrained, so what comes out follows the schema; where `max_tokens` ends an answer before its
        structure is complete, an `OutputParserException` says so.

    Reasoning, of models that think before they answer (Qwen3, DeepSeek-R1, gpt-oss):
        ```python
        ChatSSD(model=..., draft=..., reasoning=False)  # True, or "low"; None: as the model's template has it
        answer.content_blocks  # [{"type": "reasoning", ...}, {"type": "text", ...}]
        ```

    Risk:
        ```python
        ChatSSD(on_risk="refuse", refusal_text="I can't help with that.")  # finish_reason "refused"
        ChatSSD(on_risk="raise")  # JailbreakRiskError, with the trace and the text so far
        ```
        Every switch of the scheme is a custom event, `ssd_scheme_switch`, to callbacks and `astream_events`.

    Response metadata:
        `model_name`, `finish_reason`, and `ssd`: the trace's summary with `risk` ("none" or "elevated"), match ratios,
        thresholds, share of tokens under Union, and tokens a round.
    """

    def _request(self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the engine's methods for one call."""
        tools = kwargs.pop("tools", None)
        response_format = kwargs.pop("response_format", None)
        if response_format is not None:
            kwargs["grammar"] = to_grammar(response_format)
            messages = with_schema(messages, response_format)
        if stop is not None:
            kwargs.setdefault("stop", stop)
        return {"prompt": to_engine_messages(messages), "params": self._params(kwargs), "tools": tools}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        model = self._for_call(kwargs)
        with (
            langchain_errors(),
            closing(model.load().stream(**model._request(messages, stop, kwargs))) as pieces,
        ):
            for piece in pieces:
                report_risk(piece, run_manager)
        return model._chat_result(piece)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        model = self._for_call(kwargs)
        with langchain_errors():
            engine = await model._aload()
            async with aclosing(engine.astream(**model._request(messages, stop, kwargs))) as pieces:
                async for piece in pieces:
                    await areport_risk(piece, run_manager)
        return model._chat_result(piece)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        calls = 0
        model = self._for_call(kwargs)
        with (
            langchain_errors(),
            closing(model.load().stream(**model._request(messages, stop, kwargs))) as pieces,
        ):
            for piece in pieces:
                chunk = model._chunk(piece, calls)
                calls += len(piece.tool_calls) + len(piece.invalid_tool_calls)
                if run_manager:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        calls = 0
        model = self._for_call(kwargs)
        with langchain_errors():
            engine = await model._aload()
            async with aclosing(engine.astream(**model._request(messages, stop, kwargs))) as pieces:
                async for piece in pieces:
                    chunk = model._chunk(piece, calls)
                    calls += len(piece.tool_calls) + len(piece.invalid_tool_calls)
                    if run_manager:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    def _chat_result(self, last: Piece) -> ChatResult:
        result = with_note(last).result
        assert result is not None
        info = {"finish_reason": result.finish_reason}
        return ChatResult(
            generations=[ChatGeneration(message=to_ai_message(result, self.model_name), generation_info=info)],
            llm_output={"model_name": self.model_name},
        )

    def _chunk(self, piece: Piece, first_call: int) -> ChatGenerationChunk:
        piece = with_note(piece)
        return ChunkOfPiece.of(piece, message=to_message_chunk(piece, self.model_name, first_call))

    async def _aload(self) -> Engine:
        # Loading takes seconds to minutes; the event loop goes on meanwhile.
        return await asyncio.to_thread(self.load)

    def bind_tools(
        self,
        tools: Sequence[ToolLike],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        parallel_tool_calls: bool | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools to the model.

        Args:
            tools: tools, functions, pydantic classes or OpenAI-style specifications.
            tool_choice: "auto" or None: the model decides; "any", "required" or True: some tool is called; a tool's
                name: that one is; "none" or False: no tool is offered.
            parallel_tool_calls: False: one call an answer.
            strict: None: calls follow their tools' schemas as far as these can be enforced; True: a schema that cannot
                be is an error; False: where the model decides, its calls are not guided.
            kwargs: bound with the tools, such as `response_format`: the answer is then a call, or has that format.

        Raises:
            InvalidRequestError: `tool_choice` is none of these.
        """
        bound = {"tool_choice": tool_choice, "parallel_tool_calls": parallel_tool_calls, "strict": strict, **kwargs}
        bound = {name: value for name, value in bound.items() if value is not None}
        specifications = [tool_specification(tool) for tool in tools]
        offered_tools(specifications, GenerationParams(tool_choice=tool_choice).tool_choice)
        return self.bind(tools=specifications, **bound)

    def with_structured_output(
        self,
        schema: Schema | None = None,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        tools: Sequence[ToolLike] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Answers as objects.

        Args:
            schema: pydantic class, TypedDict, JSON Schema or OpenAI function; the last three give dicts.
            method: "json_schema": the answer is constrained to the schema, and the models are told of it;
                "function_calling": the schema is a tool that is called; "json_mode": the answer is some JSON object,
                and the prompt has to say which.
            include_raw: give `{"raw": message, "parsed": object, "parsing_error": ...}`, and raise nothing.
            strict: True: what a schema has that cannot be enforced is an error; else it is passed over, with a warning,
                and left to pydantic's validation.
            tools: offered beside the schema; where the answer calls some, what is parsed is None, so `include_raw`
                goes with them. For "json_schema" alone.
            kwargs: settings of `GenerationParams` for these answers.

        Raises:
            InvalidRequestError: the arguments do not go together.
        """
        if tools and method != "json_schema":
            raise InvalidRequestError(f"tools go with method='json_schema', not with method={method!r}")
        model: Runnable[LanguageModelInput, AIMessage]
        reported: dict[str, Any] = {"kwargs": {"method": method, "strict": strict}, "schema": schema}
        if method == "json_mode":
            model = self.bind(response_format={"type": "json_object"}, ls_structured_output_format=reported, **kwargs)
            return structured(model, answer_parser(schema), include_raw=include_raw)
        if schema is None:
            raise InvalidRequestError(f"schema=None goes with method='json_mode' alone, not {method!r}; give a schema")
        if method == "json_schema":
            reported["schema"] = json_schema = json_schema_of(schema)
            response_format = json_schema_format(json_schema, strict=strict)
            model = self.bind_tools(
                tools or (), response_format=response_format, ls_structured_output_format=reported, **kwargs
            )
            return structured(model, answer_parser(schema), include_raw=include_raw)
        if method == "function_calling":
            tool = tool_specification(schema)
            name = tool["function"]["name"]
            model = self.bind_tools(
                [tool],
                tool_choice=name,
                parallel_tool_calls=False,
                strict=strict,
                ls_structured_output_format=reported,
                **kwargs,
            )
            return structured(model, call_parser(schema, name), include_raw=include_raw)
        raise InvalidRequestError(f"method={method!r} is none; use 'json_schema', 'function_calling' or 'json_mode'")

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "ssd"
        params["ls_model_name"] = kwargs.get("model") or self.model_name
        return params

    def get_token_ids(self, text: str) -> list[int]:
        """Ids of `text` in the target's tokenizer."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self.load().encode(text)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[ToolLike] | None = None) -> int:
        """Tokens of the prompt that `messages` and `tools` make, chat template included."""
        specifications = [tool_specification(tool) for tool in tools or ()]
        return self.load().count_tokens(to_engine_messages(messages), tools=specifications or None)
