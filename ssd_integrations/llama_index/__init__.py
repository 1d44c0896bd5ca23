"""LlamaIndex face of the engine: `SSDLLM`, a function-calling LLM."""

try:
    import llama_index.core  # noqa: F401
except ImportError as error:
    raise ImportError(
        "ssd_integrations.llama_index needs LlamaIndex, which is not installed: "
        'pip install "ssd-integrations[llama-index]"'
    ) from error

from ssd_integrations.llama_index.llm import SSDLLM

__all__ = ["SSDLLM"]
