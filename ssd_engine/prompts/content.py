"""A message's content -> text: what a text model reads of what people, tools and other models have written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ssd_engine.config import UnsupportedContent
from ssd_engine.errors import InvalidRequestError

_TEXT_KEYS = {
    "text": "text",
    "text-plain": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
}
"""Kinds of blocks that are text, and where it stands."""
_MEDIA = ("image", "audio", "video", "file", "document")


def text_of(index: int, role: str, content: Any, unsupported: UnsupportedContent) -> str:
    """The text of message `index`; blocks stand on lines of their own.

    Of an assistant's message what is no text is left out: another model's thinking, calls that stand beside the text,
    citations. In a tool's result a note says what was left out.

    Raises:
        InvalidRequestError: content of a user or a system that is no text, unless `unsupported` is "placeholder".
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise InvalidRequestError(f"message {index} has content of type {type(content).__name__}; give text")
    return "\n".join(_texts(index, role, content, unsupported))


def _texts(index: int, role: str, blocks: Sequence[Any], unsupported: UnsupportedContent) -> Iterator[str]:
    for block in blocks:
        text = _text(block)
        if text is not None:
            yield text
        elif role == "tool" and isinstance(block, Mapping) and "type" not in block:
            yield json.dumps(block, ensure_ascii=False, default=str)
        elif role == "tool" or (role != "assistant" and unsupported == "placeholder"):
            yield f"[{_medium(block)} left out: this model reads text alone]"
        elif role != "assistant":
            raise InvalidRequestError(
                f"message {index} has {_kind(block)!r} content; this model reads text only, leave it out, or have a "
                "note put in its place by unsupported_content='placeholder'"
            )


def _text(block: Any) -> str | None:
    if isinstance(block, str) or not isinstance(block, Mapping):
        return block if isinstance(block, str) else None
    text = block.get(_TEXT_KEYS.get(str(block.get("type")), ""))
    if text is None and isinstance(resource := block.get("resource"), Mapping):  # as MCP's tools embed one
        text = resource.get("text")
    return text if isinstance(text, str) else None


def _kind(block: Any) -> str:
    return str(block.get("type")) if isinstance(block, Mapping) else type(block).__name__


def _medium(block: Any) -> str:
    kind = _kind(block)
    return next((medium for medium in _MEDIA if medium in kind), kind)
