"""An engine on another machine: `ssd serve`'s answers behind the same methods as `SSDEngine`'s."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ssd_engine.config import GenerationParams, SSDConfig
from ssd_engine.engine import SSDEngine
from ssd_engine.errors import (
    EngineClosedError,
    InvalidRequestError,
    ModelLoadError,
    RequestTimeoutError,
    SSDError,
)
from ssd_engine.prompt import Prompt, Tools
from ssd_engine.remote_answer import RemoteAnswer
from ssd_engine.remote_request import chat_arguments
from ssd_engine.result import GenerationResult, Piece

if TYPE_CHECKING:
    import openai

API_KEY_VARIABLE = "SSD_API_KEY"
_AT_ONCE = 64
"""Requests of one `batch` that are on their way together."""


class RemoteEngine(SSDEngine):
    """Answers prompts through a server that `ssd serve` started; needs the extra `remote`.

    Prompts are messages: the server alone knows the tokens. `draft_prompt` and `decoding="target"` are refused.
    """

    def __init__(self, base_url: str, api_key: str | None = None, model: str | None = None) -> None:
        """Reach a server.

        Args:
            base_url: where it is, such as "http://127.0.0.1:8000/v1".
            api_key: its key; None: that in the environment variable SSD_API_KEY.
            model: which of its models; None: the one it has.

        Raises:
            ModelLoadError: the extra is not installed, or there is no server, or none that takes the key.
        """
        try:
            import httpx
            import openai
        except ImportError as error:
            raise ModelLoadError('a server needs the extra "remote": pip install "ssd-integrations[remote]"') from error
        self._base_url = base_url
        self._key = api_key or os.environ.get(API_KEY_VARIABLE) or "none"
        self._certificates = httpx.create_ssl_context()
        self._client = openai.OpenAI(base_url=base_url, api_key=self._key)
        self._is_closed = False
        with self._told():
            models = list(self._client.models.list())
        served = next((each for each in models if model in (None, each.id)), None)
        if served is None:
            known = ", ".join(each.id for each in models)
            raise ModelLoadError(f"model={model!r} is not served at {base_url}; there is: {known}")
        self.name = served.id
        self.config = SSDConfig()
        self._context_length: int | None = getattr(served, "max_model_len", None)

    def stream(
        self,
        prompt: Prompt,
        params: GenerationParams | None = None,
        draft_prompt: Prompt | None = None,
        *,
        tools: Tools | None = None,
    ) -> Generator[Piece, None, None]:
        params = params or GenerationParams()
        arguments = self._arguments(prompt, params, draft_prompt, tools)

        def pieces() -> Generator[Piece, None, None]:
            answer = RemoteAnswer(params)
            with self._told(), self._client.chat.completions.create(**arguments) as chunks:
                for chunk in chunks:
                    yield answer.add(chunk)
                    if answer.is_over:
                        break
            yield answer.finish()

        return pieces()

    async def astream(
        self,
        prompt: Prompt,
        params: GenerationParams | None = None,
        draft_prompt: Prompt | None = None,
        *,
        tools: Tools | None = None,
    ) -> AsyncGenerator[Piece, None]:
        params = params or GenerationParams()
        answer = RemoteAnswer(params)
        arguments = self._arguments(prompt, params, draft_prompt, tools)
        with self._told():
            async with (
                self._async_client() as client,
                await client.chat.completions.create(**arguments) as chunks,
            ):
                async for chunk in chunks:
                    yield answer.add(chunk)
                    if answer.is_over:
                        break
        yield answer.finish()

    def batch(
        self, prompts: Sequence[Prompt], params: GenerationParams | None = None, *, tools: Tools | None = None
    ) -> list[GenerationResult | Exception]:
        def answer(prompt: Prompt) -> GenerationResult | Exception:
            try:
                return self.generate(prompt, params, tools=tools)
            except Exception as error:
                return error

        with ThreadPoolExecutor(min(_AT_ONCE, max(len(prompts), 1))) as callers:
            return list(callers.map(answer, prompts))

    def count_tokens(self, prompt: Prompt, *, tools: Tools | None = None) -> int:
        """Tokens of `prompt` as the target reads it; the server has to read it for that."""
        return self.generate(prompt, GenerationParams(max_new_tokens=1), tools=tools).usage.prompt_tokens

    def encode(self, text: str) -> list[int]:
        """Not here: raises `InvalidRequestError`."""
        raise InvalidRequestError("the server alone knows the tokens; count_tokens counts those of a conversation")

    @property
    def context_length(self) -> int | None:
        return self._context_length

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    @property
    def num_running(self) -> int:
        """Unknown here: 0."""
        return 0

    @property
    def num_waiting(self) -> int:
        """Unknown here: 0."""
        return 0

    def close(self) -> None:
        """Close the connections; the server goes on."""
        self._is_closed = True
        self._client.close()

    def _arguments(
        self, prompt: Prompt, params: GenerationParams, draft_prompt: Prompt | None, tools: Tools | None
    ) -> dict[str, Any]:
        if self.is_closed:
            raise EngineClosedError("the engine is closed; make a new one")
        if draft_prompt is not None:
            raise InvalidRequestError("draft_prompt: a server gives both models one prompt; leave it out")
        return chat_arguments(self.name, prompt, params, tools)

    def _async_client(self) -> openai.AsyncOpenAI:
        """A client of its own for each answer: connections belong to an event loop, and callers may have several."""
        import openai

        http_client = openai.DefaultAsyncHttpxClient(verify=self._certificates)
        return openai.AsyncOpenAI(base_url=self._base_url, api_key=self._key, http_client=http_client)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """The client's errors as this package's."""
        import openai

        try:
            yield
        except openai.BadRequestError as error:
            raise InvalidRequestError(_message(error)) from error
        except openai.AuthenticationError as error:
            raise ModelLoadError(
                f"the server at {self._base_url} does not take the key; give api_key, or set {API_KEY_VARIABLE}"
            ) from error
        except openai.APITimeoutError as error:
            raise RequestTimeoutError("the request took longer than its timeout; allow more time") from error
        except openai.APIConnectionError as error:
            raise ModelLoadError(f"no server answers at {self._base_url}; start one with ssd serve") from error
        except openai.APIStatusError as error:
            raise SSDError(f"the server at {self._base_url} answered {error.status_code}: {_message(error)}") from error
        except openai.APIError as error:
            raise SSDError(f"the server at {self._base_url} could not finish the answer: {error.message}") from error


def _message(error: openai.APIStatusError) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    return str(body.get("message", error.message))
