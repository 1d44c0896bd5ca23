"""Conversation -> token ids, safely: what a user, a tool or a document writes never becomes a control token."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ssd_engine.config import UnsupportedContent
from ssd_engine.errors import InvalidRequestError
from ssd_engine.prompts.adapted import adaptations, joined, with_tools_in_message
from ssd_engine.prompts.content import text_of
from ssd_engine.prompts.reasoning import past_reasoning

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
_SURROGATE = re.compile("[\ud800-\udfff]")
_TOOLS_IN_MESSAGE = "message['tools']"
"""What a chat template holds that looks for tools in messages."""
ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Conversation:
    """A validated conversation: messages with text content, and the tools on offer (OpenAI-style specifications)."""

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()

    @classmethod
    def parse(
        cls,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        unsupported: UnsupportedContent = "error",
    ) -> Conversation:
        """Check `messages`; system messages at their head become one.

        Raises:
            InvalidRequestError: an empty list, an unknown role, or content that `text_of` refuses.
        """
        if not messages:
            raise InvalidRequestError("the conversation is empty: messages=[]; give at least one message")
        parsed = [plain(_parse_message(index, message, unsupported)) for index, message in enumerate(messages)]
        if head := list(itertools.takewhile(lambda message: message["role"] == "system", parsed)):
            parsed[: len(head)] = [joined(head)]
        return cls(tuple(parsed), tuple(plain(tool) for tool in parse_tools(tools or ())))

    def with_system_prompt(self, text: str) -> Conversation:
        """The conversation with `text` before its own system prompt."""
        first, *rest = self.messages
        if first["role"] == "system":
            first = {**first, "content": f"{text}\n\n{first['content']}"}
            return Conversation((first, *rest), self.tools)
        return Conversation(({"role": "system", "content": text}, *self.messages), self.tools)


def parse_tools(tools: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Check OpenAI-style tool specifications; `InvalidRequestError` where one is none."""
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        raise InvalidRequestError(f"tools={tools!r}: give a list of OpenAI-style tool specifications")
    return tuple(_parse_tool(index, tool) for index, tool in enumerate(tools))


def _parse_tool(index: int, tool: Any) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    kind = tool.get("type", "function") if isinstance(tool, Mapping) else "function"
    if kind != "function":
        raise InvalidRequestError(
            f"tool {index} is {kind!r}, which another provider runs on its own servers; give a function in its place"
        )
    if not isinstance(function, Mapping):
        raise InvalidRequestError(
            f'tool {index} is {tool!r}; give {{"type": "function", "function": {{"name": ..., "parameters": ...}}}}'
        )
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not name:
        raise InvalidRequestError(f"tool {index} has the name {name!r}; give it one, as text")
    if not isinstance(parameters, Mapping | None):
        raise InvalidRequestError(f"tool {name!r} has the parameters {parameters!r}; give a JSON Schema, or none")
    # `strict` is for whoever enforces the schema, not for the model.
    return {**tool, "function": {key: value for key, value in function.items() if key != "strict"}}


def _parse_message(index: int, message: Message, unsupported: UnsupportedContent) -> dict[str, Any]:
    if not isinstance(message, Mapping) or "role" not in message:
        raise InvalidRequestError(f"message {index} is {message!r}; give a mapping with 'role' and 'content'")
    if message["role"] not in ROLES:
        raise InvalidRequestError(
            f"message {index} has the unknown role {message['role']!r}; use one of {', '.join(ROLES)}"
        )
    # Chat templates know the older name alone, and some drop a message whose role they do not know.
    role = "system" if message["role"] == "developer" else message["role"]
    _require_calls(index, message.get("tool_calls"))
    parsed = {**message, "role": role, "content": text_of(index, role, message.get("content"), unsupported)}
    return {**parsed, **past_reasoning(parsed)} if role == "assistant" else parsed


def _require_calls(index: int, calls: Any) -> None:
    """Raise `InvalidRequestError` where a message's tool calls are none."""
    if not isinstance(calls, list | tuple | None):
        raise InvalidRequestError(f"message {index} has tool_calls={calls!r}; give a list of calls, or none")
    for call in calls or ():
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InvalidRequestError(
                f"message {index} has the tool call {call!r}; give "
                '{"type": "function", "function": {"name": ..., "arguments": ...}}'
            )


class ChatRenderer:
    """Renders conversations with one tokenizer's chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        control = {str(token) for token in tokenizer.added_tokens_encoder} | set(tokenizer.all_special_tokens)
        # What transformers takes for itself cannot be a variable of a template.
        self._no_variables = {"messages", *inspect.signature(tokenizer.apply_chat_template).parameters}
        # Runs of blanks are added tokens of some code models; they control nothing.
        names = "|".join(re.escape(token) for token in control if len(token) > 1 and token.strip())
        self._control_start = re.compile(f"(?=(?:{names}))(.)", re.DOTALL) if names else None

    def encode_text(self, text: str, *, begins_prompt: bool = True) -> list[int]:
        """Ids of plain text, in which nothing is a control token.

        Args:
            text: the text.
            begins_prompt: whether what the tokenizer puts before a text (a beginning-of-sequence token) is wanted.
        """
        text = plain(text)
        mark = _unused_character([text])
        first, *rest = self._broken(text, mark).split(mark)
        ids = list(self.tokenizer(first, add_special_tokens=begins_prompt).input_ids)
        return ids + [i for part in rest for i in self._encode(part)]

    def encode(
        self,
        conversation: Conversation,
        *,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Ids of a conversation, up to where the assistant's answer begins (or goes on).

        Control tokens written in a message, a tool's result, a tool's description or the template's own variables,
        `template_kwargs`, are encoded as the plain characters they are made of. Raises `InvalidRequestError` where the
        template refuses the conversation, or a variable has the name of an argument of `apply_chat_template`.
        """
        variables = plain(template_kwargs or {})
        if taken := sorted(variables.keys() & self._no_variables):
            raise InvalidRequestError(
                f"template_kwargs={taken}: these are no variables of a chat template but settings of how it is "
                "rendered; leave them out"
            )
        last = conversation.messages[-1]
        if continue_final_message and (last["role"] != "assistant" or not last["content"]):
            raise InvalidRequestError(
                f"continue_final_message=True needs a last message from the assistant with text; it is {last!r}"
            )
        mark = _unused_character(_strings([conversation.messages, conversation.tools, variables]))
        rendered = self._render_marked(conversation, variables, mark, continue_final_message=continue_final_message)
        return [i for part in rendered.split(mark) for i in self._encode(part)]

    def encode_before_final_message(
        self, conversation: Conversation, *, template_kwargs: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Ids of what `encode` writes before the text of a last message that is continued.

        Its last tokens may be others than in the whole, where the text's beginning is one token with what is before it.
        """
        variables = plain(template_kwargs or {})
        mark = _unused_character(_strings([conversation.messages, conversation.tools, variables]))
        # The rendering ends with the text, and here that is one character which is nowhere else a message's.
        last = {**conversation.messages[-1], "content": mark}
        conversation = Conversation((*conversation.messages[:-1], last), conversation.tools)
        rendered = self._render_marked(conversation, variables, mark, continue_final_message=True)
        return [i for part in rendered.removesuffix(mark).split(mark) for i in self._encode(part)]

    def _render_marked(
        self, conversation: Conversation, variables: Mapping[str, Any], mark: str, *, continue_final_message: bool
    ) -> str:
        """What the template writes, with `mark` where encoding is to be interrupted."""
        messages = [self._break_strings(message, mark) for message in conversation.messages]
        tools = [self._break_strings(tool, mark) for tool in conversation.tools]
        broken: dict[str, Any] = self._break_strings(variables, mark)
        return self._render(messages, tools, broken, continue_final_message=continue_final_message)

    def _render(
        self, messages: list[Any], tools: list[Any], variables: dict[str, Any], *, continue_final_message: bool
    ) -> str:
        if self.tokenizer.chat_template is None:
            raise InvalidRequestError(
                "this model's tokenizer has no chat template, so it cannot read messages; give a str or token ids"
            )
        if tools and _TOOLS_IN_MESSAGE in str(self.tokenizer.chat_template):
            messages = with_tools_in_message(messages, tools)
        instructions = [message["content"].strip() for message in messages if message["role"] == "system"]
        accepted: list[str] = []
        refusals: list[Exception] = []
        for adapted in adaptations(messages):
            try:
                rendered = self.tokenizer.apply_chat_template(
                    adapted,
                    tools=tools or None,
                    tokenize=False,
                    add_generation_prompt=not continue_final_message,
                    continue_final_message=continue_final_message,
                    **variables,
                )
            except Exception as error:  # a template is a program of the model's; it raises what it likes
                refusals.append(error)
                continue
            accepted.append(str(rendered))
            if all(text in accepted[-1] for text in instructions):  # some pass over roles that they do not know
                return accepted[-1]
        if accepted:
            return accepted[0]
        raise InvalidRequestError(f"the model's chat template refuses this conversation: {refusals[0]}") from refusals[
            0
        ]

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _broken(self, text: str, mark: str) -> str:
        """`text` with `mark` behind the first character of each control token, where encoding is to be interrupted."""
        return self._control_start.sub(rf"\1{mark}", text) if self._control_start else text

    def _break_strings(self, value: Any, mark: str) -> Any:
        if isinstance(value, str):
            return self._broken(value, mark)
        if isinstance(value, Mapping):
            return {self._break_strings(k, mark): self._break_strings(v, mark) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self._break_strings(item, mark) for item in value]
        return value


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings([list(value.keys()), list(value.values())])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def plain(value: Any) -> Any:
    """`value` as JSON has it: what JSON does not know becomes the text that a template would write of it.

    Halves of characters (surrogates), which no tokenizer takes, become U+FFFD.
    """
    if isinstance(value, str):
        if not _SURROGATE.search(value):
            return value
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, Mapping):
        return {plain(key if isinstance(key, str) else str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float) else plain(str(value))


def _unused_character(texts: Iterable[str]) -> str:
    """A character of Unicode's private use areas that none of `texts` holds."""
    used = set().union(*texts)
    character = next((c for c in map(chr, itertools.chain(*_PRIVATE_USE)) if c not in used), None)
    if character is None:
        raise InvalidRequestError(
            f"the prompt holds all {sum(map(len, _PRIVATE_USE))} characters of Unicode's private use areas, one of "
            "which is needed to keep its text from becoming control tokens; leave one out"
        )
    return character
