"""Which grammar writes which format's calls."""

from __future__ import annotations

from collections.abc import Mapping

from ssd_engine.answers.tool_formats import FORMATS, ToolFormat
from ssd_engine.grammars.calls.call_grammar import CallGrammar
from ssd_engine.grammars.calls.gemma_calls import GemmaGrammar
from ssd_engine.grammars.calls.json_calls import (
    DeepSeekV3Grammar,
    DeepSeekV31Grammar,
    HermesGrammar,
    ListGrammar,
    Llama4Grammar,
    LlamaGrammar,
    MistralGrammar,
    MistralListGrammar,
    PhiGrammar,
)
from ssd_engine.grammars.calls.python_calls import PythonListGrammar, ToolCodeGrammar
from ssd_engine.grammars.calls.xml_calls import XmlGrammar

_GRAMMARS: Mapping[ToolFormat, type[CallGrammar]] = {
    ToolFormat.HERMES: HermesGrammar,
    ToolFormat.LLAMA: LlamaGrammar,
    ToolFormat.LLAMA4: Llama4Grammar,
    ToolFormat.PYTHONIC: PythonListGrammar,
    ToolFormat.MISTRAL: MistralListGrammar,
    ToolFormat.QWEN3_CODER: XmlGrammar,
    ToolFormat.DEEPSEEK_V3: DeepSeekV3Grammar,
    ToolFormat.DEEPSEEK_V31: DeepSeekV31Grammar,
    ToolFormat.GEMMA3: ToolCodeGrammar,
    ToolFormat.FUNCTIONGEMMA: GemmaGrammar,
    ToolFormat.GEMMA4: GemmaGrammar,
    ToolFormat.PHI4_MINI: PhiGrammar,
    ToolFormat.GRANITE: ListGrammar,
}


def call_grammar(format: ToolFormat, added_tokens: Mapping[str, int]) -> CallGrammar:
    """What writes the calls of a format, with the tokens that a tokenizer's vocabulary was extended by."""
    kind = _GRAMMARS[format]
    if kind is MistralListGrammar and "[ARGS]" in added_tokens:
        kind = MistralGrammar
    return kind(FORMATS[format], added_tokens)
