"""`response_format`, as OpenAI has it, -> the engine's grammar and what the models are told of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from langchain_core.messages import BaseMessage, SystemMessage
from langchain_core.utils.function_calling import convert_to_json_schema
from pydantic import BaseModel

from ssd_engine.config import Grammar
from ssd_engine.errors import InvalidRequestError
from ssd_integrations.schemas import is_recursive, json_schema_of_model

Schema = dict[str, Any] | type


def json_schema_of(schema: Schema) -> dict[str, Any]:
    """A pydantic class, TypedDict, JSON Schema or OpenAI function as JSON Schema."""
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        own = json_schema_of_model(schema)
        if is_recursive(own):  # LangChain writes references out, and so ends where one comes back
            return {"title": schema.__name__, **own}
    if isinstance(schema, dict) and "title" not in schema and {"type", "properties", "$ref", "anyOf"} & schema.keys():
        schema = {"title": "Answer", **schema}
    return convert_to_json_schema(schema)


def json_schema_format(schema: dict[str, Any], *, strict: bool | None) -> dict[str, Any]:
    """A `response_format` for answers that follow `schema`."""
    described = {"name": schema.get("title", "Answer"), "schema": schema}
    return {"type": "json_schema", "json_schema": described if strict is None else {**described, "strict": strict}}


def to_grammar(response_format: Any) -> Grammar | None:
    """What the answer has to be; None for text.

    Raises:
        InvalidRequestError: it is no response format.
    """
    if isinstance(response_format, type):
        response_format = json_schema_format(json_schema_of(response_format), strict=None)
    match response_format:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return Grammar(json_schema={"type": "object"})
        case {"type": "json_schema", "json_schema": {"schema": dict() as schema, **rest}}:
            return Grammar(json_schema=schema, lenient=rest.get("strict") is not True)
    raise InvalidRequestError(
        f"response_format={response_format!r} is none; give a pydantic class, {{'type': 'text'}}, "
        "{'type': 'json_object'} or {'type': 'json_schema', 'json_schema': {'name': ..., 'schema': {...}}}"
    )


def with_schema(messages: list[BaseMessage], response_format: Any) -> list[BaseMessage]:
    """Messages that tell the models what to put into the answer; a grammar alone tells how it has to look."""
    if isinstance(response_format, type):
        response_format = json_schema_format(json_schema_of(response_format), strict=None)
    if not isinstance(response_format, Mapping) or response_format.get("type") != "json_schema":
        return messages
    schema = json.dumps(response_format["json_schema"]["schema"], ensure_ascii=False)
    instruction = f"Give your answer to the user as JSON that follows this schema:\n{schema}"
    first, *rest = messages
    if isinstance(first, SystemMessage) and isinstance(first.content, str):
        return [SystemMessage(f"{first.content}\n\n{instruction}"), *rest]
    return [SystemMessage(instruction), *messages]
