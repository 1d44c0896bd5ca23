"""RemoteEngine: `ssd serve`'s answers behind the methods that all engines have."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ssd_engine.answers.answer import Answer, AnswerSettings
from ssd_engine.config import API_KEY_VARIABLE, GenerationParams, SSDConfig
from ssd_engine.engine import Engine
from ssd_engine.errors import InvalidRequestError, ModelLoadError
from ssd_engine.prompts.prompt import Prompt, Tools
from ssd_engine.registry import Registry
from ssd_engine.serving.delivery import Deliver
from ssd_engine.serving.request import Request

if TYPE_CHECKING:
    from ssd_engine.remote.line import RemoteLine

_ANY_NUMBER = 2**31
"""Of tokens: more than any answer has."""


class RemoteEngine(Engine):
    """Answers prompts through a server that `ssd serve` started; needs the extra `remote`.

    Prompts are messages: the server alone knows the tokens. `draft_prompt` and `decoding="target"` are refused. A
    request that the server has no place for is sent again, for at most ten minutes or the request's own timeout. A
    batch has at most 64 requests under way. Without a timeout, ten minutes of silence end a request.
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
            from ssd_engine.remote.line import RemoteLine
        except ImportError as error:
            raise ModelLoadError('a server needs the extra "remote": pip install "ssd-integrations[remote]"') from error
        line = RemoteLine(base_url, api_key or os.environ.get(API_KEY_VARIABLE) or "none")
        try:
            served = _served(line, base_url, model)
        except BaseException:
            line.close()
            raise
        super().__init__(line, name=served.id, config=SSDConfig())
        self._server = line
        self._context_length: int | None = getattr(served, "max_model_len", None)

    def count_tokens(self, prompt: Prompt, *, tools: Tools | None = None) -> int:
        """Tokens of `prompt` as the target reads it, template included; the server counts them."""
        from ssd_engine.remote.request import chat_arguments

        arguments = chat_arguments(self.name, prompt, GenerationParams(), tools)
        return int(
            self._tokenized({name: arguments[name] for name in ("messages", "tools") if name in arguments})["count"]
        )

    def encode(self, text: str) -> list[int]:
        """The target's ids of a text, without what stands at the beginning of a prompt; the server knows them."""
        return list(self._tokenized({"prompt": text})["tokens"])

    @property
    def context_length(self) -> int | None:
        """Most tokens, prompt and answer together, as the server says; None where it does not."""
        return self._context_length

    def _tokenized(self, body: dict[str, Any]) -> dict[str, Any]:
        body = {"model": self.name, **body}
        answer: Any = self._server.ask(lambda client: client.post("/tokenize", cast_to=object, body=body))
        return dict(answer)

    def _checked(
        self,
        prompt: Prompt,
        params: GenerationParams,
        config: SSDConfig,
        draft_prompt: Prompt | None,
        tools: Tools | None,
        deliver: Deliver,
    ) -> Request:
        """Check a request; what is wrong with it beyond that, the server says."""
        from ssd_engine.remote.request import RemoteRequest, chat_arguments
        from ssd_engine.trace.token_records import TokenReader

        if draft_prompt is not None:
            raise InvalidRequestError("draft_prompt: a server gives both models one prompt; leave it out")
        arguments = chat_arguments(self.name, prompt, params, tools)
        if params.max_new_tokens is None:  # the server knows how many tokens the prompt has
            params = params.replaced(max_new_tokens=self._context_length or _ANY_NUMBER)
        tokens = TokenReader(None)
        unbegun = AnswerSettings(
            params=params,
            config=self.config,
            eos_ids=frozenset(),
            detokenizer=tokens,
            tool_parser=None,
            decode_token=tokens.decode,
        )
        return RemoteRequest(
            target_ids=(),
            draft_ids=(),
            params=params,
            config=config,
            guide=None,
            answer=Answer(unbegun),
            deliver=deliver,
            arguments=arguments,
            tools=arguments.get("tools", ()),
        )


def _served(line: RemoteLine, base_url: str, model: str | None) -> Any:
    """What the server says of the model."""
    models = line.ask(lambda client: client.models.list()).data
    served = next((each for each in models if model in (None, each.id)), None)
    if served is None:
        known = ", ".join(each.id for each in models)
        raise ModelLoadError(f"model={model!r} is not served at {base_url}; there is: {known}")
    return served


_servers: Registry[RemoteEngine] = Registry()


def shared_remote_engine(base_url: str, api_key: str | None = None, model: str | None = None) -> RemoteEngine:
    """The process's one engine for a model of a server: made at the first call, and again once it was closed.

    Arguments and errors are `RemoteEngine`'s.
    """
    return _servers.get((base_url, api_key, model), lambda: RemoteEngine(base_url, api_key, model))
