"""What tests of public reports have in common: models on a small random pair, and what these read."""

from __future__ import annotations

import pytest
from langchain_core.messages import AnyMessage

from ssd_engine import SSDEngine
from ssd_integrations.langchain import ChatSSD
from ssd_integrations.llama_index import SSDLLM


@pytest.fixture
def model(tiny_engine: SSDEngine) -> ChatSSD:
    return ChatSSD(engine=tiny_engine, max_tokens=24)


@pytest.fixture
def llm(tiny_engine: SSDEngine) -> SSDLLM:
    return SSDLLM(engine=tiny_engine, max_tokens=24)


def prompt_of(model: ChatSSD, messages: list[AnyMessage]) -> str:
    """What the models read."""
    engine = model.load()
    assert isinstance(engine, SSDEngine)
    request = model._request(list(messages), None, {})
    return str(engine.tokenizer.decode(engine._intake.prompt_ids(request["prompt"], None, request["params"])))
