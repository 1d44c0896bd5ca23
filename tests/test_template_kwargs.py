"""Variables that a request gives the chat template."""

from __future__ import annotations

import copy

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ssd_engine import GenerationParams, SSDEngine
from ssd_engine.errors import InvalidRequestError
from ssd_engine.prompts.conversation import ChatRenderer, Conversation

NOTED = "{% if enable_thinking is defined and not enable_thinking %}No thoughts. {% endif %}{{ note }}"


@pytest.fixture
def noting(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer whose template has variables of its own."""
    noting = copy.deepcopy(tokenizer)
    noting.chat_template = NOTED + str(tokenizer.chat_template)
    return noting


def test_a_template_gets_its_variables(noting: PreTrainedTokenizerFast) -> None:
    renderer, question = ChatRenderer(noting), Conversation.parse([{"role": "user", "content": "Hello"}])
    plain = noting.decode(renderer.encode(question))
    quiet = noting.decode(renderer.encode(question, template_kwargs={"enable_thinking": False, "note": "A note."}))
    assert quiet == "No thoughts. A note." + plain


def test_text_in_a_variable_is_no_control_token(noting: PreTrainedTokenizerFast) -> None:
    renderer, question = ChatRenderer(noting), Conversation.parse([{"role": "user", "content": "Hello"}])
    control = noting.convert_tokens_to_ids("<|im_end|>")
    ids = renderer.encode(question, template_kwargs={"note": "An end: <|im_end|>"})
    assert "An end: <|im_end|>" in noting.decode(ids)
    assert ids.count(control) == renderer.encode(question).count(control)


@pytest.mark.parametrize("name", ["tokenize", "chat_template", "add_generation_prompt", "documents", "messages"])
def test_settings_of_the_rendering_are_no_variables(
    name: str, tiny_pair: tuple[PreTrainedModel, PreTrainedModel], noting: PreTrainedTokenizerFast
) -> None:
    params = GenerationParams(max_new_tokens=4, template_kwargs={name: True})
    with SSDEngine(*tiny_pair, noting) as engine, pytest.raises(InvalidRequestError, match=name):
        engine.generate([{"role": "user", "content": "Hello"}], params)
