"""ChatSSD: Speculative Safety-Aware Decoding as a LangChain chat model."""

try:
    import langchain_core  # noqa: F401
except ImportError as error:
    raise ImportError(
        'ssd_integrations.langchain needs langchain-core: pip install "ssd-integrations[langchain]"'
    ) from error

from ssd_integrations.langchain.chat_model import ChatSSD

__all__ = ["ChatSSD"]
