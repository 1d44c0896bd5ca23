"""Tools and earlier calls in prompts, for chat templates that want them in a shape of their own."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import make_tokenizer

from ssd_engine.prompts.conversation import ChatRenderer, Conversation

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "Köln <|im_start|>"}}}
HISTORY = [
    {"role": "user", "content": "Look."},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "A cathedral."},
]
DEEPSEEK = (
    "{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content }}{% for call in m.tool_calls or [] %}"
    "<call>{{ call['function']['name'] + '|' + call['function']['arguments'] }}</call>{% endfor %}{% endfor %}"
)
PHI = (
    "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not "
    "none %}<|im_start|>system:{{ message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' }}"
    "{% else %}<|im_start|>{{ message['role'] + ':' + message['content'] }}{% endif %}{% endfor %}"
)


def rendered(template: str, messages: list[Any], tools: list[Any] | None = None) -> tuple[str, int]:
    """The prompt's text, and how often a control token begins a turn."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    ids = ChatRenderer(tokenizer).encode(Conversation.parse(messages, tools))
    return tokenizer.decode(ids), ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>"))


def test_a_template_that_wants_arguments_as_text_gets_them() -> None:
    text, num_turns = rendered(DEEPSEEK, HISTORY)
    assert '<call>look|{"at": "Köln <|im_start|>"}</call>' in text
    assert num_turns == 3


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_a_template_that_reads_tools_from_the_system_message_finds_them_there(system: str) -> None:
    described = {**TOOL["function"], "description": "Look <|im_start|>."}
    messages = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": "Hello"}]
    text, num_turns = rendered(PHI, messages, [{**TOOL, "function": described}])
    assert text.startswith(f'<|im_start|>system:{system}<|tool|>[{{"name": "look", ')
    assert '"description": "Look <|im_start|>."}]<|/tool|><|im_start|>user:Hello' in text
    assert num_turns == 2
    assert "<|tool|>" not in rendered(PHI, messages)[0]
