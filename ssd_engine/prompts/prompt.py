"""The three kinds of prompt (messages, text, token ids) and their encoding for one model of the pair."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ssd_engine.config import GenerationParams, UnsupportedContent
from ssd_engine.errors import ContextLengthError, InvalidRequestError
from ssd_engine.prompts.conversation import ChatRenderer, Conversation, Message, parse_tools

Prompt = str | Sequence[Message] | Sequence[int]
Tools = Sequence[Mapping[str, Any]]
ParsedPrompt = str | Conversation | list[int]


def parse_prompt(prompt: Prompt, tools: Tools | None, unsupported: UnsupportedContent = "error") -> ParsedPrompt:
    """Tell the three kinds of prompt apart."""
    if not isinstance(prompt, Sequence):
        raise InvalidRequestError(f"the prompt is of type {type(prompt).__name__}; give messages, text or token ids")
    if isinstance(prompt, str):
        parsed: str | list[int] = prompt
    elif prompt and all(isinstance(item, int) for item in prompt):
        parsed = list(cast("Sequence[int]", prompt))
    else:
        return Conversation.parse(cast("Sequence[Message]", prompt), tools, unsupported)
    if tools:
        raise InvalidRequestError("tools need a prompt of messages; this one is text or token ids")
    return parsed


def offered_tools(tools: Tools, choice: str) -> Tools:
    """The tools that a request's `tool_choice` leaves on offer.

    Raises:
        InvalidRequestError: it names none of them, or one of them is no specification of a tool.
    """
    tools = parse_tools(tools)
    if choice in ("auto", "none") or (choice == "any" and tools):
        return () if choice == "none" else tools
    names = [tool["function"]["name"] for tool in tools]
    if choice not in names:
        raise InvalidRequestError(
            f"tool_choice={choice!r} is none of the tools on offer: {', '.join(names) or 'there are none'}; "
            "give one of them, 'auto', 'any' or 'none'"
        )
    return [tools[names.index(choice)]]


def argument_schemas(tools: Tools) -> dict[str, Mapping[str, Any]]:
    """The JSON Schemas of the tools' arguments, by the tools' names."""
    return {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}


def with_draft_system_prompt(prompt: ParsedPrompt, system_prompt: str | None) -> ParsedPrompt:
    """The prompt as the draft gets it: with a system prompt of its own, if it has one."""
    if system_prompt is None:
        return prompt
    if not isinstance(prompt, Conversation):
        raise InvalidRequestError(
            f"draft_system_prompt={system_prompt!r} needs a prompt of messages; this one is text or token ids, "
            "so give the draft its own as draft_prompt"
        )
    return prompt.with_system_prompt(system_prompt)


@dataclass(frozen=True)
class PromptEncoder:
    """How one of the two models reads prompts."""

    name: str
    renderer: ChatRenderer
    vocabulary_size: int
    context_length: int | None

    def token_ids(self, prompt: ParsedPrompt, params: GenerationParams) -> list[int]:
        """Token ids of a prompt, checked against this model's vocabulary."""
        if isinstance(prompt, Conversation):
            ids = self.renderer.encode(
                prompt,
                continue_final_message=params.continue_final_message,
                template_kwargs=params.template_kwargs,
            )
        else:
            ids = self.renderer.encode_text(prompt) if isinstance(prompt, str) else prompt
        if not ids:
            raise InvalidRequestError(f"the prompt has no tokens: {prompt!r}; give at least one")
        unknown = next((i for i in ids if not 0 <= i < self.vocabulary_size), None)
        if unknown is not None:
            raise InvalidRequestError(
                f"token id {unknown} is outside the {self.name}'s vocabulary of {self.vocabulary_size} tokens"
            )
        return ids

    def encode(self, prompt: ParsedPrompt, params: GenerationParams) -> list[int]:
        """`token_ids`, checked against this model's context window."""
        ids = self.token_ids(prompt, params)
        if self.context_length:
            limit = f"the {self.name}'s context window has {self.context_length}"
            require_room(len(ids), params, self.context_length, f"{limit}: shorten the prompt")
        return ids

    def num_given(self, prompt: ParsedPrompt, token_ids: Sequence[int], params: GenerationParams) -> int:
        """How many of a prompt's `token_ids`, at their end, are an assistant's message that is to be continued."""
        if not isinstance(prompt, Conversation) or not params.continue_final_message:
            return 0
        before = self.renderer.encode_before_final_message(prompt, template_kwargs=params.template_kwargs)
        shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(token_ids, before, strict=False))
        return len(token_ids) - sum(1 for _ in shared)


def require_room(num_tokens: int, params: GenerationParams, positions: int, limit: str) -> None:
    """Raise `ContextLengthError` where a prompt of `num_tokens` and its answer need more than `positions`.

    An answer without a limit of its own needs one. `limit` says what has so few, and what helps beside fewer tokens.
    """
    wanted = params.max_new_tokens or 1
    if num_tokens + wanted > positions:
        answer = "an answer" if params.max_new_tokens is None else f"max_new_tokens={wanted}"
        raise ContextLengthError(
            f"a prompt of {num_tokens} tokens and {answer} need {num_tokens + wanted} positions; {limit} or lower "
            "max_new_tokens"
        )
