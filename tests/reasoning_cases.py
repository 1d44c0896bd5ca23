"""Pairs that reason before they answer, with the real chat templates of their families."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conftest import make_tokenizer
from memorised import memorised
from transformers import PreTrainedTokenizerFast

from ssd_engine import SSDEngine

TEMPLATES = Path(__file__).parent / "templates"
QUESTION = [{"role": "user", "content": "Two and two?"}]
POPULATION: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "population",
        "description": "Inhabitants of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
_TOKENS = {
    "qwen3": ["<think>", "</think>", "<tool_response>", "</tool_response>"],
    "deepseek-r1-distill": ["<think>", "</think>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"],
    "gpt-oss": [],
}
_CONTROL = {
    "gpt-oss": ["<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>"],
}
_ENDS = {"qwen3": "<|im_end|>", "deepseek-r1-distill": "<｜end▁of▁sentence｜>", "gpt-oss": "<|return|>"}


def reasoning_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """The small tokenizer with a family's chat template and the tokens that it writes."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(_TOKENS[family])
    tokenizer.add_tokens(_CONTROL.get(family, []), special_tokens=True)
    tokenizer.eos_token = _ENDS[family]
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.chat_template = (TEMPLATES / f"{family}.jinja").read_text(encoding="utf-8")
    return tokenizer


def saying(family: str, answers: Sequence[tuple[dict[str, Any], str]]) -> SSDEngine:
    """A pair that goes on from prompts with what it was taught; a prompt is given by `apply_chat_template`'s arguments.

    It says the same whatever the prompt was where only one answer is taught.
    """
    tokenizer = reasoning_tokenizer(family)
    taught = [
        (
            str(tokenizer.apply_chat_template(tokenize=False, add_generation_prompt=True, **asked)),
            answer + _ENDS[family],
        )
        for asked, answer in answers
    ]
    model = memorised(tokenizer, taught)
    return SSDEngine(model, model, tokenizer, name=family)
