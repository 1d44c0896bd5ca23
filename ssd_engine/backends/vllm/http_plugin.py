"""The part of the server that is ours: vLLM's chat completions with `ssd` in requests and responses.

An endpoint plugin of vLLM (`vllm.endpoint_plugins`, loaded where VLLM_PLUGINS names it). Its points of contact with
vLLM 0.32.0: the route and the serving class of entrypoints/openai/chat_completion, whose two generators get an
iterator of `RequestOutput` and whose streaming one gives server-sent events as text, ending with `[DONE]`.
"""

from __future__ import annotations

import asyncio
import json
import weakref
from argparse import Namespace
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import PrivateAttr, StrictBool
from starlette.datastructures import State
from starlette.types import ASGIApp, Receive, Scope, Send
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionResponse
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import validate_json_request, with_cancellation
from vllm.sampling_params import StructuredOutputsParams

from ssd_engine.backends.transformers.loader import load_tokenizer
from ssd_engine.backends.vllm.decoder import lark
from ssd_engine.backends.vllm.metrics import record
from ssd_engine.backends.vllm.pair import generation_config
from ssd_engine.backends.vllm.requests import EXTRA_ARG, requested_config
from ssd_engine.config import GenerationParams, Grammar, SSDConfig
from ssd_engine.errors import InvalidRequestError
from ssd_engine.intake import Intake, ModelFacts, end_of_sequence_ids
from ssd_engine.trace_codes import TraceReader

_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/ready", "/metrics", "/version")
"""What the server answers: vLLM has further paths, not all of which ask for the key."""
_DONE = "data: [DONE]\n\n"


class ChatRequest(ChatCompletionRequest):
    """vLLM's request with an `ssd` block: `SSDConfig`'s fields, true, or false for vLLM's own rule."""

    ssd: dict[str, Any] | StrictBool | None = None
    _config: SSDConfig | None = PrivateAttr(None)
    _grammar: str | None = PrivateAttr(None)
    """What the answer has to be, in Lark, where tools are on offer or JSON is asked for."""

    def to_sampling_params(self, *args: Any, **kwargs: Any) -> Any:
        params = super().to_sampling_params(*args, **kwargs)
        asked = False if self._config is None else self._config.model_dump()
        params.extra_args = {**(params.extra_args or {}), EXTRA_ARG: asked}
        if self._config is not None and params.logprobs is None:
            params.logprobs = 0  # the trace's way out
        if self._grammar is not None:
            params.structured_outputs = StructuredOutputsParams(grammar=self._grammar)
        return params

    def generation_params(self) -> GenerationParams:
        """What matters of the request to its prompt and grammar."""
        choice = self.tool_choice or "auto"
        wanted = self.response_format
        schema = None
        if wanted is not None and wanted.type in ("json_schema", "json_object"):
            described = wanted.json_schema.json_schema if wanted.type == "json_schema" else None
            schema = described or {"type": "object"}
        return GenerationParams(
            max_new_tokens=1,
            tool_choice=choice if isinstance(choice, str) else choice.function.name,
            parallel_tool_calls=self.parallel_tool_calls is not False,
            continue_final_message=self.continue_final_message,
            grammar=None if schema is None else Grammar(json_schema=schema, lenient=True),
        )


class ServingChat(OpenAIServingChat):
    """vLLM's chat completions, which read `ssd`, tell the trace, and turn away what is too much."""

    def __init__(
        self, served: OpenAIServingChat, intake: Intake, default: SSDConfig, longest: int, most_requests: int
    ) -> None:
        self.__dict__.update(served.__dict__)  # all its settings, which are many
        self._intake = intake
        self._default = default
        self._longest = longest
        self._most_requests = most_requests
        self._num_requests = 0

    async def create_chat_completion(
        self, request: ChatRequest, raw_request: Request | None = None
    ) -> AsyncGenerator[str, None] | ChatCompletionResponse | ErrorResponse:
        try:
            request._config = self._requested(request)
        except InvalidRequestError as error:
            return self.create_error_response(str(error), param="ssd")
        if self._num_requests >= self._most_requests:
            return self.create_error_response(
                f"{self._num_requests} requests are being answered or wait, the most that this server takes; try again "
                "later",
                err_type="RateLimitError",
                status_code=HTTPStatus.TOO_MANY_REQUESTS,
            )
        self._num_requests += 1
        try:
            answer = await super().create_chat_completion(request, raw_request)
        except BaseException:
            self._leave()
            raise
        if isinstance(answer, AsyncGenerator):
            # When the stream is no more: also where nobody has begun to read it.
            weakref.finalize(answer, self._leave)
        else:
            self._leave()
        return answer

    async def render_chat_request(self, request: ChatRequest) -> Any:
        """The prompt as the embedded engine writes it: no text in a message becomes a control token."""
        rendered = await super().render_chat_request(request)
        if isinstance(rendered, ErrorResponse) or request.chat_template_kwargs or request.documents:
            return rendered
        conversation, (engine_input, *_) = rendered
        try:
            token_ids, request._grammar = await asyncio.to_thread(self._prepared, request, conversation)
        except InvalidRequestError as error:
            return self.create_error_response(str(error))
        engine_input["prompt_token_ids"] = token_ids
        engine_input.pop("prompt", None)
        return conversation, [engine_input]

    def _prepared(self, request: ChatRequest, conversation: Sequence[Any]) -> tuple[list[int], str | None]:
        tools = [tool.model_dump(exclude_none=True) for tool in request.tools or ()]
        messages = [dict(message) for message in conversation]
        prepared = self._intake.request(
            messages, None, request.generation_params(), self._default, tools or None, self._longest, lambda _: None
        )
        return list(prepared.target_ids), None if prepared.guide is None else lark(prepared.guide)

    async def chat_completion_full_generator(
        self, request: ChatRequest, result_generator: AsyncIterator[Any], *args: Any, **kwargs: Any
    ) -> ErrorResponse | ChatCompletionResponse:
        tap = _Tap(request)
        response = await super().chat_completion_full_generator(
            request, tap.passed_on(result_generator), *args, **kwargs
        )
        if isinstance(response, ChatCompletionResponse):
            response.ssd = tap.summary()
        return response

    async def chat_completion_stream_generator(
        self, request: ChatRequest, result_generator: AsyncIterator[Any], *args: Any, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        tap = _Tap(request)
        last: str | None = None
        events = super().chat_completion_stream_generator(request, tap.passed_on(result_generator), *args, **kwargs)
        async for event in events:
            if event != _DONE:
                event = _with_ssd(event, tap.news())
            # The last event before the end tells the summary; until it is known which one that is, one is held back.
            if last is not None:
                yield _with_ssd(last, tap.summary()) if event == _DONE else last
                last = None
            if tap.is_finished and event != _DONE:
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
        config = requested_config(block, int(self._default.num_draft_tokens))
        if config is not None:
            for name in ("min_p", "logit_bias", "use_beam_search"):
                if getattr(request, name, None):
                    raise InvalidRequestError(f"{name}={getattr(request, name)!r} cannot be had with SSD; leave it out")
        return config

    def _leave(self) -> None:
        self._num_requests -= 1


class _Tap:
    """Reads, as a request's outputs pass, how its tokens were chosen."""

    def __init__(self, request: ChatRequest) -> None:
        self._config = request._config
        self._wants_logprobs = bool(request.logprobs)
        self._readers: dict[int, TraceReader] = {}
        self._codes: dict[int, str] = {}
        self._told = 0
        self.is_finished = False

    async def passed_on(self, outputs: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        """The outputs; log-probabilities that the client has asked for come likeliest first."""
        async for output in outputs:
            for each in output.outputs:
                self._read(each)
            self.is_finished = output.finished
            if self.is_finished:
                for reader in self._readers.values():
                    record(reader.trace)
            yield output

    def news(self) -> dict[str, Any]:
        """How the tokens since the last time were chosen, one hexadecimal digit each; at first, the settings too."""
        if self._config is None:
            return {}
        codes = self._codes.get(0, "")
        new, is_first, self._told = codes[self._told :], not self._told, len(codes)
        settings = {"config": self._config.model_dump(exclude={"draft_system_prompt"})} if is_first and new else {}
        return {**settings, "token_codes": new} if new else {}

    def summary(self) -> dict[str, Any] | list[dict[str, Any]]:
        """The trace's summary; of several answers (`n`), a list of them."""
        if self._config is None:
            return {"decoding": "speculative"}
        summaries = [
            {**reader.trace.summary(), "bin_size": reader.trace.bin_size, "token_codes": self._codes[index]}
            for index, reader in sorted(self._readers.items())
        ]
        return summaries[0] if len(summaries) == 1 else summaries

    def _read(self, output: Any) -> None:
        if self._config is None or output.logprobs is None:
            return
        reader = self._readers.setdefault(output.index, TraceReader(self._config))
        codes = ""
        for place, (token_id, logprobs) in enumerate(zip(output.token_ids, output.logprobs, strict=True)):
            code = logprobs[token_id].rank - 1
            reader.read_code(token_id, code)
            codes += f"{code:x}"
            if self._wants_logprobs:
                likeliest_first = sorted(logprobs.items(), key=lambda item: -item[1].logprob)
                output.logprobs[place] = dict(likeliest_first)
        self._codes[output.index] = self._codes.get(output.index, "") + codes


def _with_ssd(event: str, ssd: Any) -> str:
    """A server-sent event with more in its `ssd`."""
    if not ssd or not event.startswith("data: {"):
        return event
    data = json.loads(event.removeprefix("data: "))
    data["ssd"] = {**data.get("ssd", {}), **ssd} if isinstance(ssd, dict) else ssd
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


class _OnlyKnownPaths:
    """Answers 404 to whatever is not one of `_PATHS`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].rstrip("/") not in _PATHS:
            await JSONResponse({"error": {"message": "Not found", "code": 404}}, 404)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class SSDEndpoints:
    """The plugin, as vLLM's `EndpointPlugin` protocol wants it."""

    name = "ssd"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        app.post("/v1/chat/completions", dependencies=[Depends(validate_json_request)])(_create_chat_completion)
        app.get("/ready")(_ready)
        app.add_middleware(_OnlyKnownPaths)

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        asked = engine_client.vllm_config.additional_config.get(EXTRA_ARG)
        most = engine_client.vllm_config.additional_config.get("ssd_most_requests", 1024)
        drafts = engine_client.vllm_config.speculative_config.num_speculative_tokens
        default = requested_config(asked or {}, drafts)
        assert default is not None
        state.openai_serving_chat = ServingChat(
            state.openai_serving_chat,
            _intake(engine_client.vllm_config),
            default,
            engine_client.model_config.max_model_len,
            most,
        )


def _intake(vllm_config: Any) -> Intake:
    """What checks and writes prompts, for the pair that vLLM runs."""
    model = vllm_config.model_config
    tokenizer = load_tokenizer(model.tokenizer)
    configs = model.hf_config, vllm_config.speculative_config.draft_model_config.hf_config
    facts = ModelFacts.of(configs[0], tokenizer), ModelFacts.of(configs[1], tokenizer)
    return Intake(*facts, end_of_sequence_ids(generation_config(model.model), tokenizer))


@with_cancellation
async def _create_chat_completion(request: ChatRequest, raw_request: Request) -> Response:
    answer = await raw_request.app.state.openai_serving_chat.create_chat_completion(request, raw_request)
    if isinstance(answer, ErrorResponse):
        return JSONResponse(answer.model_dump(), status_code=answer.error.code)
    if isinstance(answer, ChatCompletionResponse):
        return JSONResponse(answer.model_dump())
    return StreamingResponse(answer, media_type="text/event-stream")


async def _ready(raw_request: Request) -> Response:
    """Whether requests can be answered: the models are loaded (the port opens after that) and vLLM lives."""
    await raw_request.app.state.engine_client.check_health()
    return Response(status_code=200)
