"""Structured output: parsers that give objects in place of messages, and never a part of one as if it were whole."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableGenerator
from langchain_core.runnables.utils import AddableDict
from langchain_core.utils.pydantic import TBaseModel, is_basemodel_subclass


class _JsonOnly:
    """Looks at how an answer ended before it is parsed; nothing, where it calls other tools instead.

    LangChain's parsers close what is open, which is right while a stream goes on, and not at its end.
    """

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if message := _ended(result):
            if message.tool_calls:
                return None
            if not _is_whole(message.text, message.response_metadata["finish_reason"]):
                raise _not_whole(message)
        return super().parse_result(result, partial=partial)  # type: ignore[misc]


class _CallOnly:
    """An answer that has ended has to hold a call."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if (message := _ended(result)) and not message.tool_calls:
            raise _not_whole(message)
        return super().parse_result(result, partial=partial)  # type: ignore[misc]


class _JsonAnswer(_JsonOnly, JsonOutputParser):
    pass


class _PydanticAnswer(_JsonOnly, PydanticOutputParser[TBaseModel]):
    pass


class _JsonCall(_CallOnly, JsonOutputKeyToolsParser):
    pass


class _PydanticCall(_CallOnly, PydanticToolsParser):
    pass


def _ended(result: list[Generation]) -> AIMessage | None:
    """The message, if it is one of ours that has come to its end."""
    message = result[0].message if isinstance(result[0], ChatGeneration) else None
    return message if isinstance(message, AIMessage) and "finish_reason" in message.response_metadata else None


def _is_whole(text: str, finish_reason: str) -> bool:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return False
    # A number that was cut is a number.
    return finish_reason != "length" or isinstance(value, dict | list)


def _not_whole(message: AIMessage) -> OutputParserException:
    reason = {
        "refused": "the answer was refused for its jailbreak risk",
        "length": "the answer is not whole: max_tokens ended it within its structure; allow more tokens",
    }.get(
        message.response_metadata["finish_reason"], "the answer is not whole: a stop string ended it, or it is no JSON"
    )
    return OutputParserException(reason, llm_output=message.text)


def answer_parser(schema: Any) -> Runnable[Any, Any]:
    """A parser of answers that are JSON: to a pydantic class, or to a dict for any other schema or for none."""
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        return _PydanticAnswer(pydantic_object=schema)
    return _JsonAnswer()


def call_parser(schema: Any, name: str) -> Runnable[Any, Any]:
    """A parser of the arguments of a call of tool `name`, which is made from `schema`."""
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        return _PydanticCall(tools=[schema], first_tool_only=True)
    return _JsonCall(key_name=name, first_tool_only=True)


def structured(
    model: Runnable[LanguageModelInput, Any], parser: Runnable[Any, Any], *, include_raw: bool
) -> Runnable[LanguageModelInput, Any]:
    """A model's answers, parsed; with `include_raw` as {"raw": ..., "parsed": ..., "parsing_error": ...}."""
    if not include_raw:
        return model | parser

    def outcome(raw: Any) -> AddableDict:
        try:
            return AddableDict(parsed=parser.invoke(raw), parsing_error=None)
        except Exception as error:
            return AddableDict(parsed=None, parsing_error=error)

    def parsed(chunks: Iterator[Any]) -> Iterator[AddableDict]:
        raw = None
        for chunk in chunks:
            raw = chunk if raw is None else raw + chunk
            yield AddableDict(raw=chunk)
        yield outcome(raw)

    async def aparsed(chunks: AsyncIterator[Any]) -> AsyncIterator[AddableDict]:
        raw = None
        async for chunk in chunks:
            raw = chunk if raw is None else raw + chunk
            yield AddableDict(raw=chunk)
        yield outcome(raw)

    return model | RunnableGenerator(parsed, aparsed)
