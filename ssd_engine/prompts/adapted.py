"""One conversation in other shapes, for chat templates that know fewer roles, or want user and assistant by turns."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

Messages = list[dict[str, Any]]


def adaptations(messages: Messages) -> Iterator[Messages]:
    """The conversation as it is, then in shapes that more and more templates take; each once.

    What a template refuses in one shape is tried in the next, so nothing changes for a template that takes the first.
    """
    shapes = [messages]
    yield messages
    for adapt in (_with_arguments_as_text, _without_system, _by_turns, _without_tools):
        for shape in shapes.copy():
            adapted = adapt(shape)
            if adapted not in shapes:
                shapes.append(adapted)
                yield adapted


def with_tools_in_message(messages: Messages, tools: list[Any]) -> Messages:
    """The tools stand in the system message, as JSON, where Phi-4-mini's template looks for them."""
    has_system = bool(messages) and messages[0]["role"] == "system"
    first, *rest = messages if has_system else [{"role": "system", "content": ""}, *messages]
    return [{**first, "tools": _as_json([tool["function"] for tool in tools])}, *rest]


def _with_arguments_as_text(messages: Messages) -> Messages:
    """Arguments of calls are JSON, which templates take that put texts together, as DeepSeek's do."""
    return [
        {**message, "tool_calls": [_with_text(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _with_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = function.get("arguments")
    written = {**function, "arguments": arguments if isinstance(arguments, str) else _as_json(arguments or {})}
    return {**call, "function": written} if "function" in call else written


def _without_system(messages: Messages) -> Messages:
    """System messages stand at the head of the first user's message."""
    instructions = [message["content"] for message in messages if message["role"] == "system"]
    others = [message for message in messages if message["role"] != "system"]
    if not instructions:
        return messages
    place = next((place for place, message in enumerate(others) if message["role"] == "user"), None)
    if place is None:
        return [{"role": "user", "content": "\n\n".join(instructions)}, *others]
    first = {**others[place], "content": "\n\n".join([*instructions, others[place]["content"]])}
    return [*others[:place], first, *others[place + 1 :]]


def _by_turns(messages: Messages) -> Messages:
    """Messages of one role that follow one another are one, and the first turn is a user's."""
    turns: Messages = []
    for role, run in itertools.groupby(messages, key=lambda message: message["role"]):
        own = list(run)
        turns += own if role == "tool" else [joined(own)]
    first = next((place for place, message in enumerate(turns) if message["role"] != "system"), len(turns))
    if first < len(turns) and turns[first]["role"] == "user":
        return turns
    return [*turns[:first], {"role": "user", "content": ""}, *turns[first:]]


def _without_tools(messages: Messages) -> Messages:
    """Calls stand in the assistant's text, and results are told by the user."""
    if not any(message["role"] == "tool" or message.get("tool_calls") for message in messages):
        return messages
    return _by_turns([_in_words(message) for message in messages])


def _in_words(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] == "tool":
        return {"role": "user", "content": f"Result of {message.get('name') or 'the tool'}:\n{message['content']}"}
    calls = message.get("tool_calls") or ()
    functions = [call.get("function", call) for call in calls]
    # As they are: the marks that keep text from becoming control tokens have to stay.
    texts = [_as_json({"name": each["name"], "arguments": each.get("arguments")}) for each in functions]
    content = "\n".join([*([message["content"]] if message["content"] else []), *texts])
    return {"role": message["role"], "content": content}


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def joined(messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Messages of one role as one, a blank line between their texts."""
    if len(messages) == 1:
        return messages[0]
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    whole = {**messages[0], "content": "\n\n".join(each["content"] for each in messages if each["content"])}
    return {**whole, "tool_calls": calls} if calls else whole
