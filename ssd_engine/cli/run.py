"""`ssd run`: one prompt, one answer."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Annotated, Any

import typer

from ssd_engine.answers.result import GenerationResult
from ssd_engine.cli import generation_options
from ssd_engine.cli.console import print_summary, shown, stderr, stdout, tokens_per_second
from ssd_engine.cli.pair_options import load, takes_pair
from ssd_engine.config import GenerationParams
from ssd_engine.errors import InvalidRequestError
from ssd_engine.models.pair import PairSpec


@takes_pair()
def run(
    prompt: Annotated[str, typer.Argument(help="The user's message; - reads it from standard input.")],
    *,
    pair: PairSpec,
    system: generation_options.SystemOption = None,
    prefill: Annotated[str | None, typer.Option(help="Beginning of the answer, to go on from.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")] = False,
    decoding: generation_options.DecodingOption = "ssd",
    max_tokens: generation_options.MaxTokensOption = 512,
    temperature: generation_options.TemperatureOption = 0.0,
    top_p: generation_options.TopPOption = 1.0,
    top_k: generation_options.TopKOption = None,
    seed: generation_options.SeedOption = None,
    reasoning: generation_options.ReasoningOption = None,
    stop: Annotated[list[str] | None, typer.Option(help="String that ends the answer; may be repeated.")] = None,
) -> None:
    """Answer one prompt, with a summary of its safety trace on stderr."""
    try:
        params = GenerationParams(
            decoding=decoding,
            max_new_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            reasoning=generation_options.reasoning_of(reasoning),
            stop=stop,
            continue_final_message=prefill is not None,
        )
    except InvalidRequestError as error:
        raise typer.BadParameter(str(error)) from error
    messages = _messages(sys.stdin.read() if prompt == "-" else prompt, system, prefill)
    with load(pair) as engine:
        if as_json:
            with stderr.status("Answering"):
                result = engine.generate(messages, params)
            typer.echo(json.dumps({"model": engine.name, **_as_json(result)}, ensure_ascii=False))
            return
        with contextlib.closing(engine.stream(messages, params)) as pieces:
            *_, last = shown(pieces)
    stdout.print()
    if last.result is not None:
        print_summary(last.result)


def _messages(prompt: str, system: str | None, prefill: str | None) -> list[dict[str, str]]:
    messages = [("system", system), ("user", prompt), ("assistant", prefill)]
    return [{"role": role, "content": content} for role, content in messages if content is not None]


def _as_json(result: GenerationResult) -> dict[str, Any]:
    return {
        "text": result.text,
        "finish_reason": result.finish_reason,
        "usage": {
            "prompt_tokens": result.usage.prompt_tokens,
            "cached_prompt_tokens": result.usage.cached_prompt_tokens,
            "completion_tokens": result.usage.completion_tokens,
            "total_tokens": result.usage.total_tokens,
        },
        "trace": result.trace.summary(),
        "tokens_per_second": round(tokens_per_second(result), 2),
    }
