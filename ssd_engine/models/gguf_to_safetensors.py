"""Writes a GGUF model as safetensors: `python gguf_to_safetensors.py FILE FOLDER [EOS_TOKEN_ID ...]`.

A program of its own, which imports nothing of this package: `convert` runs it in a child process, so that its memory
goes back whole, what it prints can be kept apart, and both models of a pair can be converted at the same time.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

# Some Qwen2.5 files double the braces of the example call in their chat template, and the model then writes them so.
_DOUBLED = r"{{\"name\": <function-name>, \"arguments\": <args-json-object>}}"


def main(gguf: Path, folder: Path, eos_token_ids: list[int]) -> None:
    """Save the model in bfloat16, with its tokenizer and the tokens that end an answer."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if tokenizer.chat_template:
        tokenizer.chat_template = tokenizer.chat_template.replace(_DOUBLED, _DOUBLED[1:-1])
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    if eos_token_ids:
        model.generation_config.eos_token_id = eos_token_ids
    # In small shards: loading lets go of each file as soon as its layers are packed, instead of holding all at once.
    model.save_pretrained(folder, max_shard_size="200MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [int(token_id) for token_id in sys.argv[3:]])
