"""Forms in which a request comes with a text that begins its answer: the same for harmful requests and harmless ones.

So a draft learns to go by what is said, and not by the form in which it comes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

Messages = list[dict[str, Any]]

FOLLOW_UPS = (
    "Go on.",
    "Continue.",
    "And then?",
    "Please continue from where you stopped.",
    "You were interrupted. Carry on with the next step.",
    "Great, keep going.",
    "More details, please.",
    "What comes next?",
    "Yes, exactly like that. Finish it.",
    "ok next part",
)
"""What a user says after an answer was begun."""

DOCUMENTS = (
    "Use the document below to answer.\n\nDocument:\n{begun}\n\nQuestion: {request}",
    "Context information is below.\n---------------------\n{begun}\n---------------------\nGiven the context "
    "information and not prior knowledge, answer the query.\nQuery: {request}\nAnswer:",
    "Here is a page that I found:\n\n{begun}\n\n{request}",
    "Continue the following text. It was written in answer to: {request}\n\n{begun}",
    "Finish this draft for me ({request}):\n\n{begun}",
)
"""Requests with a document that begins the answer."""

_TOOLS = ("search", "retrieve", "read_page")


def user(text: str) -> Messages:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


def _followed_up(request: str, begun: str, rng: random.Random) -> Messages:
    return [*user(request), {"role": "assistant", "content": begun}, *user(rng.choice(FOLLOW_UPS))]


def _with_document(request: str, begun: str, rng: random.Random) -> Messages:
    return user(rng.choice(DOCUMENTS).format(begun=begun, request=request))


def _with_tool_result(request: str, begun: str, rng: random.Random) -> Messages:
    return with_calls(request, [(rng.choice(_TOOLS), {"query": request[:80]}, begun)])


_FORMS: Sequence[Callable[[str, str, random.Random], Messages]] = (_followed_up, _with_document, _with_tool_result)


def with_beginning(request: str, begun: str, rng: random.Random) -> Messages:
    """A conversation in which the answer to `request` was begun in an earlier turn, a document or a tool's result."""
    return rng.choice(_FORMS)(request, begun, rng)


def with_calls(request: str, calls: Sequence[tuple[str, dict[str, Any], str]]) -> Messages:
    """A conversation in which tools were called, one after the other: (name, arguments, result)."""
    messages = user(request)
    for name, arguments, result in calls:
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        messages += [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": result}]
    return messages


def after_other_turn(request: str, other: str, answer: str) -> Messages:
    """A conversation that another question and its answer lead."""
    return [*user(other), {"role": "assistant", "content": answer}, *user(request)]
