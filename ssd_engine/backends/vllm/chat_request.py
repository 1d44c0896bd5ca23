"""A chat request as the server takes it: vLLM's, with settings of SSD, and what of it matters to prompt and grammar."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import PrivateAttr, StrictBool, model_validator
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.sampling_params import StructuredOutputsParams

from ssd_engine.answers.answer_format import ReasoningStage
from ssd_engine.backends.vllm.requests import EXTRA_ARG, GIVEN_ARG
from ssd_engine.config import GenerationParams, Grammar, SSDConfig
from ssd_engine.errors import InvalidRequestError

_NOT_WITH_SSD = ("min_p", "logit_bias", "use_beam_search")
_NOT_HERE = ("documents", "add_special_tokens", "truncate_prompt_tokens", "kv_transfer_params")
"""What would make another prompt than this server's own renderer."""
_STRUCTURES = ("json", "regex", "choice", "json_object")
"""Structured outputs that can stand beside tools."""


class ChatRequest(ChatCompletionRequest):
    """vLLM's request with an `ssd` block: `SSDConfig`'s fields, true, or false for vLLM's own rule."""

    ssd: dict[str, Any] | StrictBool | None = None
    ssd_tokens: bool = False
    """Whether a stream tells of every token by itself, as `RemoteEngine` wants it (`token_records.py`)."""
    reasoning: bool | str | None = None
    """As `GenerationParams` has it."""
    _config: SSDConfig | None = PrivateAttr(None)
    _grammar: str | None = PrivateAttr(None)
    """What the answer has to be, in Lark, where tools are on offer or JSON is asked for."""
    _num_given: int = PrivateAttr(0)
    """Tokens at the prompt's end that are a given beginning whose risk signals are to tell."""
    _reasoning_stage: ReasoningStage = PrivateAttr("over")
    """How far the reasoning is as the answer begins."""
    _can_reason: bool = PrivateAttr(default=False)
    """Whether the model reasons before it answers."""
    _messages: list[dict[str, Any]] = PrivateAttr([])
    """The messages as they were sent, so that prompts have them word for word; but for the arguments of calls: they are
    sent as text, and templates want objects."""
    _tools: list[dict[str, Any]] = PrivateAttr([])
    """The tools as they were sent."""

    @model_validator(mode="wrap")
    @classmethod
    def _keep_as_sent(cls, data: Any, handler: Callable[[Any], ChatRequest]) -> ChatRequest:
        given = dict(data) if isinstance(data, Mapping) else {}
        request = handler(data)
        request._messages = [_with_parsed_calls(message) for message in given.get("messages") or ()]
        request._tools = list(given.get("tools") or ())
        return request

    @property
    def offers_tools(self) -> bool:
        """Whether the answer may call tools."""
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def must_call(self) -> bool:
        """Whether the answer has to call some tool."""
        return self.offers_tools and self.tool_choice not in (None, "auto")

    def require_possible(self) -> None:
        """Raise `InvalidRequestError` where something is asked for that would be passed over, or done otherwise."""
        for name in (*(_NOT_WITH_SSD if self._config is not None else ()), *_NOT_HERE):
            if getattr(self, name, None):
                raise InvalidRequestError(f"{name}={getattr(self, name)!r} cannot be had with SSD; leave it out")
        if not self.add_generation_prompt and not self.continue_final_message:
            raise InvalidRequestError("add_generation_prompt=False goes with continue_final_message=True; leave it out")
        own, wanted = self.structured_outputs, self.response_format
        if own is not None and wanted is not None and wanted.type != "text":
            raise InvalidRequestError(
                f"structured_outputs and response_format of type {wanted.type!r} both say what the answer is to be; "
                "give one of them"
            )
        if not self.offers_tools:
            return
        if wanted is not None and wanted.type == "structural_tag":
            raise InvalidRequestError("response_format of type 'structural_tag' does not go with tools; leave out one")
        if own is not None:
            given = {name for name, value in vars(own).items() if value and not name.startswith("_")}
            if unfit := sorted(given - set(_STRUCTURES)):
                raise InvalidRequestError(
                    f"structured_outputs with {', '.join(unfit)} does not go with tools, whose calls have a grammar of "
                    f"their own; give one of {', '.join(_STRUCTURES)} alone, or leave out the tools"
                )

    def to_sampling_params(self, *args: Any, **kwargs: Any) -> Any:
        """VLLM's sampling parameters, with what is asked of SSD."""
        params = super().to_sampling_params(*args, **kwargs)
        asked = False if self._config is None else self._config.model_dump()
        params.extra_args = {**(params.extra_args or {}), EXTRA_ARG: asked, GIVEN_ARG: self._num_given}
        if self._num_given:
            params.skip_reading_prefix_cache = True  # what is to be heard has to be read
        if self._config is not None and params.logprobs is None:
            params.logprobs = 0  # the trace's way out
        if self._grammar is not None:
            params.structured_outputs = StructuredOutputsParams(grammar=self._grammar)
        return params

    def generation_params(self, template_kwargs: dict[str, Any]) -> GenerationParams:
        """What matters of the request to its prompt and grammar."""
        choice = self.tool_choice or "auto"
        return GenerationParams(
            max_new_tokens=1,
            tool_choice=choice if isinstance(choice, str) else choice.function.name,
            parallel_tool_calls=self.parallel_tool_calls is not False,
            continue_final_message=self.continue_final_message,
            template_kwargs=template_kwargs,
            reasoning=self.reasoning,
            strict=self._strict(),
            grammar=self._given_grammar(),
        )

    @staticmethod
    def _is_convertible(own: StructuredOutputsParams) -> bool:
        return any(getattr(own, name) for name in _STRUCTURES)

    def _strict(self) -> bool | None:
        """What the tools say together: True where one does, False where all do."""
        said = {tool.function.strict for tool in self.tools or ()}
        return True if True in said else False if said == {False} else None

    def _given_grammar(self) -> Grammar | None:
        wanted, own = self.response_format, self.structured_outputs
        if wanted is not None and wanted.type == "json_object":
            return Grammar(json_schema={"type": "object"})
        if wanted is not None and wanted.type == "json_schema":
            described = wanted.json_schema
            return Grammar(json_schema=described.json_schema or {"type": "object"}, lenient=not described.strict)
        # Alone it goes vLLM's own way, but where reasoning is to come before it.
        if own is None or not (self.offers_tools or (self._can_reason and self._is_convertible(own))):
            return None
        if own.regex is not None:
            return Grammar(regex=own.regex)
        if own.choice is not None:
            return Grammar(regex="|".join(map(re.escape, own.choice)))
        schema = {"type": "object"} if own.json_object else own.json
        return Grammar(json_schema=_read(schema) if isinstance(schema, str) else schema, lenient=True)


def _read(schema: str) -> Any:
    try:
        return json.loads(schema)
    except ValueError as error:
        raise InvalidRequestError(f"structured_outputs.json={schema!r} is no JSON: {error}; give a schema") from error


def _with_parsed_calls(message: Any) -> Any:
    """A message whose calls have objects for arguments; what is no message or call stays, and is told of later."""
    calls = message.get("tool_calls") if isinstance(message, Mapping) else None
    return {**message, "tool_calls": [_parsed(call) for call in calls]} if isinstance(calls, list) else message


def _parsed(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(arguments := function.get("arguments"), str):
        return call
    try:
        return {**call, "function": {**function, "arguments": json.loads(arguments or "{}")}}
    except (ValueError, RecursionError):
        return call  # what a model once wrote stays as it was
