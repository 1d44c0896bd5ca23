"""Pairs that reason before they answer, with the real chat templates of their families."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from conftest import make_tokenizer
from memorised import memorised
from transformers import PreTrainedModel, PreTrainedTokenizerFast

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


Taught = Sequence[tuple[dict[str, Any], str]]
"""Prompts, as arguments of `apply_chat_template`, and what is said to each."""


def taught(family: str, answers: Taught, **options: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A model that goes on from prompts with what it was taught, and its tokenizer."""
    tokenizer = reasoning_tokenizer(family)
    render = partial(tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
    texts = [(str(render(**asked)), answer + _ENDS[family]) for asked, answer in answers]
    return memorised(tokenizer, texts, **options), tokenizer


def saying(family: str, answers: Taught) -> SSDEngine:
    """A pair of that model with itself."""
    model, tokenizer = taught(family, answers)
    return SSDEngine(model, model, tokenizer, name=family)
