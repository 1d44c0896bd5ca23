"""What goes wrong between a client and its server, as this package's errors."""

from __future__ import annotations

import httpx
import openai

from ssd_engine.config import API_KEY_VARIABLE
from ssd_engine.errors import (
    AuthenticationError,
    ContextLengthError,
    EngineBusyError,
    InvalidRequestError,
    RequestTimeoutError,
    ServerConnectionError,
    SSDError,
)

_BAD_REQUEST = (400, 413, 422)
_NO_ACCESS = (401, 403)
_TOO_MANY = 429
_NOT_THERE = (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol, httpx.ProxyError)


def as_ssd_error(error: Exception, url: str) -> SSDError:
    """`error`, which came of asking the server at `url`, as a caller is told of it."""
    ours = error if isinstance(error, SSDError) else _translated(error, url)
    ours.__cause__ = ours.__cause__ if ours is error else error
    return ours


def broke_off(url: str, reason: str) -> SSDError:
    """The answer has an end that nobody meant."""
    return SSDError(
        f"the answer of the server at {url} broke off before its end: {reason}; ask again, and where it happens often "
        "look for limits of the proxies in between"
    )


def _translated(error: Exception, url: str) -> SSDError:
    if isinstance(error, openai.APIStatusError):
        return _status_error(error, url)
    if isinstance(error, openai.APIConnectionError):  # also of a timeout; what happened is its cause
        cause = error.__cause__
        return _lost(cause if isinstance(cause, Exception) else error, url)
    if isinstance(error, openai.APIError):
        return SSDError(f"the server at {url} could not finish the answer: {error.message}")
    if isinstance(error, httpx.HTTPError | TimeoutError):
        return _lost(error, url)
    return SSDError(f"the server at {url} sent what is no answer ({type(error).__name__}: {error}); is it `ssd serve`?")


def _lost(error: Exception, url: str) -> SSDError:
    if isinstance(error, _NOT_THERE):
        return ServerConnectionError(f"no server answers at {url}; start one with ssd serve")
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return RequestTimeoutError(
            f"the server at {url} was silent for too long; see whether it still works, or give the request a timeout, "
            "which then holds instead"
        )
    return broke_off(url, f"{type(error).__name__}: {error}")


def _status_error(error: openai.APIStatusError, url: str) -> SSDError:
    body = error.body if isinstance(error.body, dict) else {}
    message = str(body.get("message", error.message))
    if error.status_code in _BAD_REQUEST:
        return (ContextLengthError if body.get("type") == "ContextLengthError" else InvalidRequestError)(message)
    if error.status_code in _NO_ACCESS:
        return AuthenticationError(
            f"the server at {url} does not take the key; give api_key, or set {API_KEY_VARIABLE}"
        )
    if error.status_code == _TOO_MANY:
        return EngineBusyError(f"the server at {url} takes no more requests: {message}; come again later")
    return SSDError(f"the server at {url} answered {error.status_code}: {message}")
