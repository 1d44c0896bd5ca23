"""llama.cpp among the contenders of the speed benchmark: the same models' GGUF files, as its own server runs them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ssd_engine.errors import InvalidRequestError
from ssd_engine.models.pair import PairSpec

_CONTEXT = 4096
_DRAFTS = 3


def installed() -> str | None:
    """The version of llama.cpp's bindings, if they are there."""
    try:
        return version("xllamacpp")
    except PackageNotFoundError:
        return None


def require_files(pair: PairSpec) -> None:
    """Raise `InvalidRequestError` where the pair's sources are no GGUF files, or llama.cpp is not installed."""
    if installed() is None:
        raise InvalidRequestError("llama.cpp's rows need xllamacpp: pip install 'ssd-integrations[bench]'")
    others = [source for source in (pair.target, pair.draft) if not str(source).endswith(".gguf")]
    if others:
        raise InvalidRequestError(f"llama.cpp's rows need GGUF files, and {others[0]!r} is none; leave these rows out")


class LlamaCpp:
    """llama.cpp's server within this process."""

    def __init__(self, pair: PairSpec, *, most_requests: int, drafts: bool) -> None:
        """`pair`: two GGUF files; with `drafts` the draft speculates, as llama.cpp does it."""
        import torch
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(pair.target)
        params.verbosity = -1  # it would write every request into the terminal
        params.n_ctx, params.n_parallel = _CONTEXT, most_requests
        params.kv_unified = True
        params.cache_prompt, params.cache_ram_mib = False, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
        if drafts:
            params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
            params.speculative.draft.mparams.path = str(pair.draft)
            params.speculative.draft.n_max = _DRAFTS
        self._server = xllamacpp.Server(params)

    def answer(self, prompts: Sequence[Any], max_new_tokens: int) -> list[dict[str, Any]]:
        """Answers to conversations that all arrive at once, each with its `seconds`."""

        def ask(messages: Any) -> dict[str, Any]:
            start = time.perf_counter()
            request = {"messages": messages, "max_tokens": max_new_tokens, "temperature": 0, "cache_prompt": False}
            answer: dict[str, Any] = self._server.handle_chat_completions(request)
            return {**answer, "seconds": time.perf_counter() - start}

        with ThreadPoolExecutor(len(prompts)) as asking:
            return list(asking.map(ask, prompts))
