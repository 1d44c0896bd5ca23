"""The error family. Each message says what was wrong, with the value, and what to do."""

from __future__ import annotations

from typing import Any


class SSDError(Exception):
    """Base of every error that this package raises on purpose."""


class InvalidRequestError(SSDError, ValueError):
    """A setting, prompt or message that cannot be used."""


class ContextLengthError(InvalidRequestError):
    """The prompt, or the prompt with the tokens asked for, is past a model's context window."""


class InvalidDataError(SSDError, ValueError):
    """A set of prompts that cannot be read, or lacks what is needed of it."""


class ModelLoadError(SSDError):
    """A model, tokenizer or adapter that could not be found, fetched, checked or loaded."""


class ServerConnectionError(ModelLoadError, ConnectionError):
    """No server answers where one was named."""


class AuthenticationError(ModelLoadError):
    """A server does not take the key that it got."""


class VocabularyMismatchError(ModelLoadError, ValueError):
    """Target and draft give one token id two different strings."""


class EngineClosedError(SSDError, RuntimeError):
    """The engine was closed before or during the request, or its worker has failed: `__cause__` then says by what."""


class EngineBusyError(SSDError, RuntimeError):
    """More requests wait than the engine, or the server, takes."""


class RequestTimeoutError(SSDError, TimeoutError):
    """The request did not finish within its own `timeout`."""


class JailbreakRiskError(SSDError):
    """The Union scheme held for longer than the request allows.

    Attributes:
        trace: what happened, token by token: a `SafetyTrace`.
        text: the text that had been written so far.
    """

    def __init__(self, message: str, *, trace: Any, text: str) -> None:
        super().__init__(message)
        self.trace = trace
        self.text = text
