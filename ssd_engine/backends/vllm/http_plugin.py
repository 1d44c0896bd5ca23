"""The part of the server that is ours: vLLM's chat completions with `ssd` in requests and responses.

An endpoint plugin of vLLM (`vllm.endpoint_plugins`, loaded where VLLM_PLUGINS names it). Its points of contact with
vLLM 0.32.0, with those of `chat_request.py` and `tap.py`: the route and the serving class of
entrypoints/openai/chat_completion, whose two generators get an iterator of `RequestOutput` and whose streaming one
gives server-sent events as text, ending with `[DONE]`.
"""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import Field
from starlette.datastructures import State
from starlette.types import ASGIApp, Receive, Scope, Send
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import validate_json_request, with_cancellation
from vllm.exceptions import VLLMValidationError

from ssd_engine.backends.vllm.chat_request import ChatRequest
from ssd_engine.backends.vllm.decoder import lark
from ssd_engine.backends.vllm.pair import generation_config
from ssd_engine.backends.vllm.parser import SSDParser
from ssd_engine.backends.vllm.requests import EXTRA_ARG, configured_signals, requested_config
from ssd_engine.backends.vllm.tap import DONE, Tap
from ssd_engine.config import GenerationParams, SSDConfig
from ssd_engine.errors import ContextLengthError, InvalidRequestError
from ssd_engine.models.checkpoints import load_tokenizer
from ssd_engine.serving.intake import Intake, ModelFacts, end_of_sequence_ids
from ssd_engine.serving.request import Request as PreparedRequest

_PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/v1/tokenize",
    "/health",
    "/ready",
    "/metrics",
    "/version",
)
"""What the server answers: vLLM has further paths, not all of which ask for the key."""
_GENERATIONS = ("/v1/chat/completions", "/v1/completions")
_TOO_LONG = ("max_model_len", "maximum context length")
"""What vLLM's errors say of a request that is past the context window."""
_RENDERING = ("add_generation_prompt", "continue_final_message", "documents")
"""What vLLM counts among the template's variables, and the renderer here does by itself."""


class ServingChat(OpenAIServingChat):
    """vLLM's chat completions, which read `ssd` and tell the trace."""

    def __init__(self, served: OpenAIServingChat, intake: Intake, default: SSDConfig, longest: int) -> None:
        self.__dict__.update(served.__dict__)  # all its settings, which are many
        self._intake = intake
        self._default = default
        self._longest = longest
        self.parser_cls = SSDParser
        self._include_reasoning_tokens_details = intake.format.reasoning is not None

    def _make_parser(self, request: ChatRequest, *_: Any) -> SSDParser:
        return SSDParser(request, self._intake)

    def _finalize_response_message(self, message: Any, *args: Any, **kwargs: Any) -> Any:
        """A whole answer's message, its reasoning also under the name that other servers' clients know."""
        message = super()._finalize_response_message(message, *args, **kwargs)
        if message.reasoning:
            message.reasoning_content = message.reasoning
        return message

    async def create_chat_completion(
        self, request: ChatRequest, raw_request: Request | None = None
    ) -> AsyncGenerator[str, None] | ChatCompletionResponse | ErrorResponse:
        """Answer a chat; what is wrong with it is a response of status 400."""
        try:
            request._config = self._requested(request)
            request._can_reason = self._intake.format.reasoning is not None
            if request._config is not None:
                self._intake.require_signals(request._config)
        except InvalidRequestError as error:
            return self.create_error_response(str(error), param="ssd")
        try:
            request.require_possible()
        except InvalidRequestError as error:
            return self._refused(error)
        answer: AsyncGenerator[str, None] | ChatCompletionResponse | ErrorResponse
        answer = await super().create_chat_completion(request, raw_request)
        return answer

    async def render_chat_request(self, request: ChatRequest) -> Any:
        """The prompt as the embedded engine writes it: no text in a message becomes a control token."""
        try:
            rendered = await super().render_chat_request(request)
        except VLLMValidationError as error:
            if not any(words in str(error) for words in _TOO_LONG):
                raise
            return self._refused(ContextLengthError(str(error)))
        if isinstance(rendered, ErrorResponse):
            return rendered
        conversation, (engine_input, *_) = rendered
        try:
            prepared = await asyncio.to_thread(self._prepared, request)
        except InvalidRequestError as error:
            return self._refused(error)
        request._num_given, request._reasoning_stage = prepared.num_given, prepared.reasoning_stage
        request._grammar = None if prepared.guide is None else lark(prepared.guide)
        if self._intake.shows_control_tokens(request._tools if request.offers_tools else ()):
            request.skip_special_tokens = False
        engine_input["prompt_token_ids"] = list(prepared.target_ids)
        engine_input.pop("prompt", None)
        return conversation, [engine_input]

    async def tokenized(self, request: TokenizeRequest) -> Response:
        """The tokens of a conversation, as the target reads it, or of a text without what begins a prompt."""
        if request.prompt is not None:
            token_ids = await asyncio.to_thread(self._intake.encode_plain, request.prompt)
        else:
            try:
                request.require_possible()
                token_ids = await asyncio.to_thread(
                    self._intake.prompt_ids, request._messages, request._tools or None, self._params(request)
                )
            except InvalidRequestError as error:
                return _error(self._refused(error))
        return JSONResponse({"count": len(token_ids), "tokens": token_ids, "max_model_len": self._longest})

    def _params(self, request: ChatRequest) -> GenerationParams:
        variables = self._effective_chat_template_kwargs(request)
        return request.generation_params(
            {name: value for name, value in variables.items() if name not in _RENDERING and value is not None}
        )

    def _prepared(self, request: ChatRequest) -> PreparedRequest:
        """The request as the embedded engine would run it."""
        params, tools = self._params(request), request._tools or None
        config = request._config or self._default.replaced(signals=None)
        return self._intake.request(request._messages, None, params, config, tools, self._longest, lambda _: None)

    async def chat_completion_full_generator(
        self, request: ChatRequest, result_generator: AsyncGenerator[Any, None], *args: Any, **kwargs: Any
    ) -> ErrorResponse | ChatCompletionResponse:
        """The whole answer, with the trace's summary."""
        tap = Tap(request, self._intake)
        response = await super().chat_completion_full_generator(
            request, tap.passed_on(result_generator), *args, **kwargs
        )
        if isinstance(response, ChatCompletionResponse):
            response.ssd = tap.summary()
        return response

    async def chat_completion_stream_generator(
        self, request: ChatRequest, result_generator: AsyncGenerator[Any, None], *args: Any, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        """The events of a streamed answer, with what the trace says of each."""
        tap = Tap(request, self._intake)
        last: str | None = None
        events = super().chat_completion_stream_generator(request, tap.passed_on(result_generator), *args, **kwargs)
        async for event in events:
            event = tap.told(event)
            # The last event before the end tells the summary; until it is known which one that is, one is held back.
            if last is not None:
                yield tap.summed_up(last) if event == DONE else last
                last = None
            if tap.is_finished and event != DONE:
                last = event
            else:
                yield event

    def _requested(self, request: ChatRequest) -> SSDConfig | None:
        """The settings that hold for a request; None for vLLM's own rule."""
        block = request.ssd
        if block is None or block is True:
            block = {}
        if isinstance(block, dict):
            block = {**self._default.model_dump(exclude={"num_draft_tokens"}), **block}
        return requested_config(block, int(self._default.num_draft_tokens))

    def _refused(self, error: InvalidRequestError) -> ErrorResponse:
        """Status 400, whose type says what kind of mistake it is."""
        kind = "ContextLengthError" if isinstance(error, ContextLengthError) else "BadRequestError"
        return self.create_error_response(str(error), err_type=kind)


class _Gate:
    """Answers 404 to whatever is not one of `_PATHS`, and 429 to generations beyond what the server takes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._num_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].rstrip("/") if scope["type"] == "http" else None
        if path is not None and path not in _PATHS:
            await JSONResponse({"error": {"message": "Not found", "code": 404}}, 404)(scope, receive, send)
        elif path not in _GENERATIONS:
            await self._app(scope, receive, send)
        elif self._num_requests >= scope["app"].state.ssd_most_requests:
            await self._turned_away()(scope, receive, send)
        else:
            self._num_requests += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._num_requests -= 1

    def _turned_away(self) -> Response:
        message = f"{self._num_requests} requests are being answered or wait, the most that are taken; try again later"
        body = {"error": {"message": message, "type": "RateLimitError", "param": None, "code": 429}}
        return JSONResponse(body, 429, {"Retry-After": "1"})


class SSDEndpoints:
    """The plugin, as vLLM's `EndpointPlugin` protocol wants it."""

    name = "ssd"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Put our routes and limits into vLLM's application."""
        app.post("/v1/chat/completions", dependencies=[Depends(validate_json_request)])(_create_chat_completion)
        app.get("/ready")(_ready)
        app.post("/v1/tokenize", dependencies=[Depends(validate_json_request)])(_tokenize)
        app.add_middleware(_Gate)

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Put our chat in the place of vLLM's."""
        asked = engine_client.vllm_config.additional_config.get(EXTRA_ARG)
        drafts = engine_client.vllm_config.speculative_config.num_speculative_tokens
        default = requested_config(asked or {}, drafts)
        assert default is not None
        state.openai_serving_chat = ServingChat(
            state.openai_serving_chat,
            _intake(engine_client.vllm_config),
            default,
            engine_client.model_config.max_model_len,
        )
        state.ssd_most_requests = engine_client.vllm_config.additional_config.get("ssd_most_requests", 1024)


def _intake(vllm_config: Any) -> Intake:
    """What checks and writes prompts, for the pair that vLLM runs."""
    model = vllm_config.model_config
    tokenizer = load_tokenizer(model.tokenizer, model.tokenizer_revision)
    configs = model.hf_config, vllm_config.speculative_config.draft_model_config.hf_config
    facts = ModelFacts.of(configs[0], tokenizer), ModelFacts.of(configs[1], tokenizer)
    signals = configured_signals(vllm_config)
    return Intake(*facts, end_of_sequence_ids(generation_config(model.model, model.revision), tokenizer), signals)


class TokenizeRequest(ChatRequest):
    """What is to be counted: `prompt`, a text, or what a chat request has of messages and tools."""

    messages: list[Any] = Field([])
    prompt: str | None = None


async def _tokenize(request: TokenizeRequest, raw_request: Request) -> Response:
    response: Response = await raw_request.app.state.openai_serving_chat.tokenized(request)
    return response


def _error(response: ErrorResponse) -> Response:
    return JSONResponse(response.model_dump(), status_code=response.error.code)


@with_cancellation
async def _create_chat_completion(request: ChatRequest, raw_request: Request) -> Response:
    answer = await raw_request.app.state.openai_serving_chat.create_chat_completion(request, raw_request)
    if isinstance(answer, ErrorResponse):
        return _error(answer)
    if isinstance(answer, ChatCompletionResponse):
        return JSONResponse(answer.model_dump())
    return StreamingResponse(answer, media_type="text/event-stream")


async def _ready(raw_request: Request) -> Response:
    """Whether requests can be answered: the models are loaded (the port opens after that) and vLLM lives."""
    await raw_request.app.state.engine_client.check_health()
    return Response(status_code=200)
