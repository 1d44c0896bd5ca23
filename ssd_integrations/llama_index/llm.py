"""SSDLLM: a LlamaIndex LLM whose answers are decoded with Speculative Safety-Aware Decoding."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_messages_to_prompt
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import ToolSelection, default_completion_to_prompt
from llama_index.core.program.function_program import get_function_tool
from llama_index.core.prompts import BasePromptTemplate
from pydantic import BaseModel

from ssd_integrations.llama_index.delivery import agenerate, astream, generate, stream
from ssd_integrations.llama_index.messages import to_engine_messages
from ssd_integrations.llama_index.pair_llm import PairLLM
from ssd_integrations.llama_index.request import Request
from ssd_integrations.llama_index.responses import Answer
from ssd_integrations.llama_index.tools import ToolChoice, tool_selections, tool_specifications

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool


class SSDLLM(PairLLM):
    """A pair of models, a large target and a small safe draft, as one LlamaIndex LLM.

    Setup:
        ```bash
        pip install "ssd-integrations[llama-index]"
        ```

    Instantiate. Models are loaded at first use; instances that name the same pair share one engine in the process:
        ```python
        from ssd_integrations.llama_index import SSDLLM

        llm = SSDLLM()                                              # the default pair
        llm = SSDLLM(model="org/large", draft="org/small-safe")     # hub ids, folders or GGUF files
        llm = SSDLLM(preset="qwen2.5-coder-1.5b", temperature=0.7, max_tokens=256)
        llm = SSDLLM(engine=engine)                                 # an engine that is loaded already
        ```

    Complete and chat, each also as `stream_*`, `a*` and `astream_*`:
        ```python
        print(llm.complete("Name three primes."))
        for part in llm.stream_chat([ChatMessage("Name three primes.")], temperature=0.7, seed=1):
            print(part.delta, end="")
        ```
        Keyword arguments of a call go before the fields of the instance. They are the fields' names and those of
        `GenerationParams`; an unknown one is an error.

    Everywhere in LlamaIndex:
        ```python
        Settings.llm = SSDLLM()
        print(index.as_query_engine().query("What is a match ratio?"))
        ```

    Tools:
        ```python
        response = llm.chat_with_tools([FunctionTool.from_defaults(add)], "What is 2 + 3?")
        llm.get_tool_calls_from_response(response)[0].tool_kwargs    # {"a": 2, "b": 3}
        ```
        With `tool_required=True` or `tool_choice=<name>` decoding is constrained: some tool, or that one, is called,
        with arguments that follow its schema. Text that began as a call and is none stands in
        `message.additional_kwargs["invalid_tool_calls"]`.

    Structured output, guided the same way:
        ```python
        llm.structured_predict(City, PromptTemplate("Tell me about {city}."), city="Lyon")
        llm.as_structured_llm(City).complete("Tell me about Lyon.").raw
        ```

    Reasoning, of models that think before they answer (Qwen3, DeepSeek-R1, gpt-oss):
        ```python
        SSDLLM(model=..., draft=..., reasoning=False)  # True, or "low"; None: as the model's template has it
        response.message.blocks                        # [ThinkingBlock(...), TextBlock(...)]
        ```

    Risk:
        ```python
        SSDLLM(on_risk="refuse", refusal_text="I can't help with that.")  # finish_reason "refused"
        SSDLLM(on_risk="raise")                                           # JailbreakRiskError
        ```
        Every switch of the scheme is a `SchemeSwitchEvent` to LlamaIndex's instrumentation.

    Response metadata:
        ```python
        response.raw["ssd"]             # SafetyTrace.summary(): risk, match rate, bins, ...
        response.raw["usage"]           # prompt_tokens, completion_tokens, cached_prompt_tokens, total_tokens
        response.raw["finish_reason"]   # "stop" | "length" | "tool_calls" | "refused"
        ```
        Of a stream, the last part carries `raw`.
    """

    @classmethod
    def class_name(cls) -> str:
        """The name that saved settings know it by."""
        return "SSDLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """The pair's real limits; loads the models at first use."""
        window = self.engine.context_length or DEFAULT_CONTEXT_WINDOW
        params = self._params({})
        return LLMMetadata(
            context_window=window,
            num_output=params.max_new_tokens or min(params.limit, window // 4),
            is_chat_model=True,
            is_function_calling_model=self.is_function_calling_model,
            model_name=self.engine.name,
            system_role=MessageRole.SYSTEM,
        )

    # -- Completion --

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer `prompt` as a user's message; with `formatted`, go on from it as text without the chat template.

        Control tokens written in a prompt are plain characters, formatted or not.
        """
        request = self._completion_request(prompt, kwargs, formatted=formatted)
        return Answer(self.engine.name).completion_response(generate(self.engine, request))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """`complete`, asynchronously."""
        request = self._completion_request(prompt, kwargs, formatted=formatted)
        engine = await self._aengine()
        return Answer(engine.name).completion_response(await agenerate(engine, request))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """`complete`, in parts as they are decoded; `text` grows, `delta` is what is new."""
        request = self._completion_request(prompt, kwargs, formatted=formatted)
        return stream(self.engine, request, Answer(self.engine.name).add_to_completion)

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """`stream_complete`, asynchronously."""
        request = self._completion_request(prompt, kwargs, formatted=formatted)
        engine = await self._aengine()
        return astream(engine, request, Answer(engine.name).add_to_completion)

    # -- Chat --

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation; `system_prompt` leads it unless it starts with its own."""
        request = self._chat_request(messages, kwargs)
        return Answer(self.engine.name).chat_response(generate(self.engine, request))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """`chat`, asynchronously."""
        request = self._chat_request(messages, kwargs)
        engine = await self._aengine()
        return Answer(engine.name).chat_response(await agenerate(engine, request))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """`chat`, in parts as they are decoded; the message grows, `delta` is what is new."""
        request = self._chat_request(messages, kwargs)
        return stream(self.engine, request, Answer(self.engine.name).add_to_chat)

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """`stream_chat`, asynchronously."""
        request = self._chat_request(messages, kwargs)
        engine = await self._aengine()
        return astream(engine, request, Answer(engine.name).add_to_chat)

    # -- Tools --

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: ToolChoice = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Arguments of `chat`. `tool_choice` takes OpenAI's words and mappings, or a tool's name."""
        if isinstance(user_msg, str):
            user_msg = ChatMessage(role=MessageRole.USER, content=user_msg)
        return {
            "messages": [*(chat_history or ()), *([user_msg] if user_msg else ())],
            "tools": tool_specifications(tools),
            "tool_choice": "any" if tool_required and tool_choice in (None, "auto") else tool_choice,
            "parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The valid tool calls of a response.

        Raises:
            ValueError: there is none, and `error_on_no_tool_call` is set.
        """
        selections = tool_selections(response.message)
        if error_on_no_tool_call and not selections:
            invalid = response.message.additional_kwargs.get("invalid_tool_calls", [])
            raise ValueError(
                f"Expected at least one tool call, but got 0 valid and {len(invalid)} invalid ones "
                f"in the answer {response.message.content!r}, which ended with {_finish_reason(response)!r}. "
                "Allow more tokens where that is 'length', or pass error_on_no_tool_call=False."
            )
        return selections

    # -- Structured output --

    def _structured_stream_call(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        # LlamaIndex's own leaves the call to the model, and takes a broken one for an empty object.
        arguments = self._structured_request(output_cls, prompt, llm_kwargs, prompt_args)
        # To its end, so that LlamaIndex's instrumentation sees the stream as ended.
        *_, response = self.stream_chat_with_tools(**arguments)
        yield self._structured_object(output_cls, response)

    async def _structured_astream_call(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        arguments = self._structured_request(output_cls, prompt, llm_kwargs, prompt_args)

        async def objects() -> AsyncGenerator[Any, None]:
            *_, response = [part async for part in await self.astream_chat_with_tools(**arguments)]
            yield self._structured_object(output_cls, response)

        return objects()

    def _structured_request(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None,
        prompt_args: dict[str, Any],
    ) -> dict[str, Any]:
        """Arguments of `stream_chat_with_tools` that have `output_cls` called as a tool."""
        return {
            **(llm_kwargs or {}),
            "tools": [get_function_tool(output_cls)],
            "chat_history": self._extend_messages(prompt.format_messages(llm=self, **prompt_args)),
            "tool_required": True,
        }

    def _structured_object(self, output_cls: type[BaseModel], response: ChatResponse) -> BaseModel:
        return output_cls.model_validate(self.get_tool_calls_from_response(response)[0].tool_kwargs)

    # -- Requests --

    def _completion_request(self, prompt: str, overrides: dict[str, Any], *, formatted: bool) -> Request:
        params = self._params(overrides)
        if formatted:
            return Request(prompt, params)
        to_prompt = self.completion_to_prompt
        if to_prompt is not None and to_prompt is not default_completion_to_prompt:
            return Request(to_prompt(prompt), params)
        messages = [ChatMessage(role=MessageRole.USER, content=prompt)]
        return Request(to_engine_messages(messages, self.system_prompt), params)

    def _chat_request(self, messages: Sequence[ChatMessage], overrides: dict[str, Any]) -> Request:
        tools = overrides.pop("tools", None) or None
        params = self._params(overrides)
        to_prompt = self.messages_to_prompt
        if to_prompt is not None and to_prompt is not generic_messages_to_prompt:
            return Request(to_prompt(messages), params, tools)
        return Request(to_engine_messages(messages, self.system_prompt), params, tools)


def _finish_reason(response: ChatResponse) -> str | None:
    return response.raw.get("finish_reason") if isinstance(response.raw, dict) else None
