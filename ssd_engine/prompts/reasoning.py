"""What a chat template is told of reasoning: whether a model is to reason, how much, and what was reasoned before."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from ssd_engine.errors import InvalidRequestError

Reasoning = bool | str | None
"""Whether, or how much, a model reasons before it answers; None: as its template has it."""
_SWITCHES = ("enable_thinking", "thinking")
"""Variables that turn reasoning on and off (Qwen3 and most others; DeepSeek V3.1, Granite)."""
_EFFORT = "reasoning_effort"
_OTHER_TAGS = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
"""Tags that transformers adds to the language of templates."""


def reasoning_variables(chat_template: str | None, reasoning: Reasoning) -> dict[str, Any] | None:
    """The template's variables that ask for `reasoning`; None where it has none for it."""
    if reasoning is None:
        return {}
    known = _variables(chat_template or "")
    if isinstance(reasoning, str):
        return {_EFFORT: reasoning} if _EFFORT in known else None
    switch = next((name for name in _SWITCHES if name in known), None)
    return None if switch is None else {switch: reasoning}


def require_reasoning(chat_template: str | None, reasoning: Reasoning, *, can_reason: bool) -> None:
    """Raise `InvalidRequestError` where a model cannot be asked for `reasoning`.

    `can_reason`: whether the template speaks of reasoning at all.
    """
    if reasoning_variables(chat_template, reasoning) is not None or reasoning is can_reason:
        return
    if not can_reason:
        raise InvalidRequestError(
            f"reasoning={reasoning!r}: this model's chat template knows no reasoning; leave it out"
        )
    known = _variables(chat_template or "")
    switch = next((name for name in _SWITCHES if name in known), None)
    if isinstance(reasoning, str):
        advice = "give True or False" if switch else "leave it out"
        raise InvalidRequestError(f"reasoning={reasoning!r}: this model's reasoning has no levels; {advice}")
    advice = "give 'low' for little of it" if _EFFORT in known else "leave it out"
    raise InvalidRequestError(f"reasoning=False: this model always reasons; {advice}")


def past_reasoning(message: Mapping[str, Any]) -> dict[str, str]:
    """The reasoning that came with an assistant's message, under the names that templates know.

    Whether the model reads it again is the template's matter: most leave out what was thought before the last question.
    """
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if not isinstance(reasoning, str):
        return {}
    named = {"reasoning_content": reasoning}
    # gpt-oss's name; its template refuses it where a call stands beside text.
    return named if message.get("tool_calls") and message["content"] else {**named, "thinking": reasoning}


@cache
def _variables(chat_template: str) -> frozenset[str]:
    """The names that a template looks up and does not set itself."""
    from jinja2 import Environment, TemplateSyntaxError, meta

    environment = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True)  # nothing is rendered
    try:
        return frozenset(meta.find_undeclared_variables(environment.parse(_OTHER_TAGS.sub("", chat_template))))
    except TemplateSyntaxError:
        return frozenset()  # said when it is rendered
