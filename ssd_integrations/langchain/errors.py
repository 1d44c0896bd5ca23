"""This package's errors as LangChain's own: each is both, so that middleware and fallbacks know what went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from langchain_core import exceptions as langchain

from ssd_engine import errors as ssd


class ContextOverflowError(ssd.ContextLengthError, langchain.ContextOverflowError):
    """The prompt, or the prompt with the tokens asked for, is past the pair's context window."""


class ModelInvalidRequestError(ssd.InvalidRequestError, langchain.ModelInvalidRequestError):
    """A setting, prompt or message that cannot be used."""


class ModelRateLimitError(ssd.EngineBusyError, langchain.ModelRateLimitError):
    """More requests wait than the engine, or the server, takes."""


class ModelTimeoutError(ssd.RequestTimeoutError, langchain.ModelTimeoutError):
    """The request did not finish within its own `timeout`."""


class ModelConnectionError(ssd.ServerConnectionError, langchain.ModelConnectionError):
    """No server answers at `base_url`."""


class ModelAuthenticationError(ssd.AuthenticationError, langchain.ModelAuthenticationError):
    """The server does not take the key."""


_BOTH: tuple[tuple[type[ssd.SSDError], type[Any]], ...] = (
    (ssd.ContextLengthError, ContextOverflowError),
    (ssd.InvalidRequestError, ModelInvalidRequestError),
    (ssd.EngineBusyError, ModelRateLimitError),
    (ssd.RequestTimeoutError, ModelTimeoutError),
    (ssd.ServerConnectionError, ModelConnectionError),
    (ssd.AuthenticationError, ModelAuthenticationError),
)
"""The first that fits holds."""


@contextmanager
def langchain_errors() -> Iterator[None]:
    """Raise this package's errors as those that are LangChain's too."""
    try:
        yield
    except langchain.ModelError:
        raise
    except ssd.SSDError as error:
        both = next((both for own, both in _BOTH if isinstance(error, own)), None)
        if both is None:
            raise
        raise both(str(error)) from error
