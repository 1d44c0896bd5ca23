"""A request to a server, and what is sent for it: the arguments of the OpenAI client's `chat.completions.create`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ssd_engine.config import GenerationParams
from ssd_engine.errors import InvalidRequestError, SSDError
from ssd_engine.prompts.conversation import Conversation, plain
from ssd_engine.prompts.prompt import Prompt, Tools, offered_tools, parse_prompt
from ssd_engine.serving.request import Request


@dataclass(eq=False)
class RemoteRequest(Request):
    """A request to a server. Its prompt's ids are not known here, only their number, once the answer begins."""

    arguments: dict[str, Any] = field(default_factory=dict)
    """Of the client's `chat.completions.create`."""
    tools: Tools = ()
    """The tools on offer."""
    refusal: SSDError | None = None
    """Why the server has not taken the request yet."""

    @property
    def timeout_error(self) -> SSDError | None:
        """As any request's; where the server was too busy, that is said instead."""
        return super().timeout_error and (self.refusal or super().timeout_error)


def chat_arguments(model: str, prompt: Prompt, params: GenerationParams, tools: Tools | None) -> dict[str, Any]:
    """What is sent for one prompt.

    Raises:
        InvalidRequestError: what a server cannot be asked for.
    """
    tools = offered_tools(tools or (), params.tool_choice)
    parsed = parse_prompt(prompt, tools, params.unsupported_content)
    if not isinstance(parsed, Conversation):
        raise InvalidRequestError("the prompt is text or token ids; a server takes messages")
    if params.decoding == "target":
        raise InvalidRequestError(
            "decoding='target': a server drafts for every request; use 'speculative', whose tokens are distributed as "
            "the target's"
        )
    # With token ids every step has an event of its own, also where its text is held back.
    further: dict[str, Any] = {"ssd": _ssd(params), "ssd_tokens": True, "return_token_ids": True}
    if params.top_k is not None:
        further["top_k"] = params.top_k
    if params.template_kwargs:
        further["chat_template_kwargs"] = plain(params.template_kwargs)
    if params.reasoning is not None:
        further["reasoning"] = params.reasoning
    if params.continue_final_message:
        further |= {"continue_final_message": True, "add_generation_prompt": False}
    arguments: dict[str, Any] = {
        "model": model,
        "messages": [_message(message) for message in parsed.messages],
        "max_tokens": params.max_new_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "stop": list(params.stop) or None,
        "seed": params.seed,
        "logprobs": params.logprobs or None,
        "top_logprobs": params.top_logprobs if params.logprobs else None,
        "stream": True,
        "stream_options": {"include_usage": True},  # the summary then has an event of its own
        **_tools(tools, params),
        **_response_format(params, further),
    }
    return {**{name: value for name, value in arguments.items() if value is not None}, "extra_body": further}


def _ssd(params: GenerationParams) -> dict[str, Any] | bool:
    if params.decoding != "ssd":
        return False
    return True if params.ssd is None else params.ssd.model_dump(exclude_unset=True)


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose tool calls have their arguments as text, as OpenAI's have."""
    calls = message.get("tool_calls")
    if not calls:
        return dict(message)
    return {**message, "tool_calls": [_call(place, call) for place, call in enumerate(calls)]}


def _call(place: int, call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {
        "id": call.get("id") or f"call_{place}",
        "type": "function",
        "function": {**{name: function[name] for name in function if name != "id"}, "arguments": text},
    }


def _tools(tools: Tools, params: GenerationParams) -> dict[str, Any]:
    if not tools:
        return {}
    choice: Any = params.tool_choice
    if choice not in ("auto", "none"):
        choice = "required" if choice == "any" else {"type": "function", "function": {"name": choice}}
    return {
        "tools": [plain(_tool(tool, strict=params.strict)) for tool in tools],
        "tool_choice": choice,
        "parallel_tool_calls": params.parallel_tool_calls,
    }


def _tool(tool: Mapping[str, Any], *, strict: bool | None) -> Mapping[str, Any]:
    """A tool with the request's own `strict`, since that is what holds here."""
    return tool if strict is None else {**tool, "function": {**tool["function"], "strict": strict}}


def _response_format(params: GenerationParams, further: dict[str, Any]) -> dict[str, Any]:
    grammar = params.grammar
    if grammar is None:
        return {}
    if grammar.json_schema is not None:
        schema = {"name": "answer", "schema": grammar.json_schema, "strict": not grammar.lenient}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    further["structured_outputs"] = {"regex": grammar.regex} if grammar.regex else {"grammar": grammar.lark}
    return {}
