"""Structured output: parsers that give objects in place of messages, and never a part of one as if it were whole."""

from __future__ import annotations

import json
from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.pydantic import TBaseModel, is_basemodel_subclass


class _Whole:
    """Looks at how an answer ended before it is parsed.

    LangChain's parsers close what is open, which is right while a stream goes on, and not at its end.
    """

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if isinstance(result[0], ChatGeneration) and isinstance(result[0].message, AIMessage):
            _require_whole(result[0].message)
        return super().parse_result(result, partial=partial)  # type: ignore[misc]


class _WholeOrCalls(_Whole):
    """Nothing, where an answer calls other tools in place of giving what was asked for."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if isinstance(result[0], ChatGeneration) and getattr(result[0].message, "tool_calls", None):
            return None
        return super().parse_result(result, partial=partial)


class _JsonAnswer(_WholeOrCalls, JsonOutputParser):
    pass


class _PydanticAnswer(_WholeOrCalls, PydanticOutputParser[TBaseModel]):
    pass


class _JsonCall(_Whole, JsonOutputKeyToolsParser):
    pass


class _PydanticCall(_Whole, PydanticToolsParser):
    pass


def _require_whole(message: AIMessage) -> None:
    match message.response_metadata.get("finish_reason"):
        case "refused":
            raise OutputParserException("the answer was refused for its jailbreak risk", llm_output=message.text)
        case "length" if not _is_json(message.text):
            raise OutputParserException(
                "the answer is not whole: max_tokens ended it within its structure; allow more tokens",
                llm_output=message.text,
            )


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


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
    model: Runnable[LanguageModelInput, Any], parser: Runnable[Any, Any], include_raw: bool
) -> Runnable[LanguageModelInput, Any]:
    """A model's answers, parsed; with `include_raw` as {"raw": ..., "parsed": ..., "parsing_error": ...}."""
    if not include_raw:
        return model | parser
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    not_parsed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsed.with_fallbacks([not_parsed], exception_key="parsing_error")
