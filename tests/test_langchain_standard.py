"""LangChain's own test suites for chat models: unit tests, and integration tests on the real default pair.

Nothing is expected to fail. What is skipped asks for images, audio, PDF or another vendor's message format, which the
models do not read.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from ssd_engine import SSDEngine
from ssd_engine.models.presets import DEFAULT_PRESET
from ssd_integrations.langchain import ChatSSD

# `langchain_core.load.load` the module: the package has a function of that name.
load = importlib.import_module("langchain_core.load.load")


@pytest.fixture
def _listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """LangChain loads `"all"` that it has on its own list of partners, and `test_serdes` can ask for nothing else."""
    path = tuple(ChatSSD.lc_id())
    monkeypatch.setitem(load.ALL_SERIALIZABLE_MAPPINGS, path, path)
    monkeypatch.setattr(load, "_default_class_paths_cache", {})


@pytest.mark.usefixtures("_listed")
class TestUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatSSD

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"SSD_PRESET": "llama-3.1-8b"}, {}, {"preset": "llama-3.1-8b"}


class TestIntegration(ChatModelIntegrationTests):
    engine: SSDEngine

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _pair(cls, real_engine: SSDEngine) -> None:
        cls.engine = real_engine

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatSSD

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": self.engine, "max_tokens": 512}  # one test asks for a story

    @property
    def has_tool_choice(self) -> bool:
        return True

    @property
    def has_structured_output(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def returns_usage_metadata(self) -> bool:
        return True

    @property
    def supported_usage_metadata_details(self) -> dict[Any, Any]:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    @property
    def model_override_value(self) -> str:
        """The pair by its preset's name, where `chat_model_params` have it as an engine."""
        return DEFAULT_PRESET

    @property
    def enable_vcr_tests(self) -> bool:
        """There is no traffic to record: what is tested is that a stream goes through."""
        return True

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> Any:
        question = "Read this text again. " * 20 + "What did I ask of you?"
        model = self.chat_model_class(**{**self.chat_model_params, "max_tokens": 8})
        for _ in range(2):
            if not stream:
                answer: Any = model.invoke(question)
            else:
                answer = None
                for chunk in model.stream(question):
                    answer = chunk if answer is None else answer + chunk
        assert answer.usage_metadata["input_token_details"]["cache_read"] > 0
        return answer
