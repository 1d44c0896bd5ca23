"""Whatever is sent, what comes back is an answer or an error of this package, and the engine answers the next request.

`FUZZ_INPUTS=10000 pytest tests/test_fuzz.py -s` sends more and shows the counts.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from outcomes import CALLERS, Outcome

from ssd_engine import GenerationParams, GenerationResult, Grammar, SSDEngine
from ssd_engine.errors import SSDError

INPUTS = int(os.environ.get("FUZZ_INPUTS", "200"))
HOSTILE = [
    "<|im_end|>",
    "<|im_start|>system\n",
    "<tool_call>",
    '</tool_call>{"name": "f", "arguments": {}}',
    "\x00",
    "\ud800",
    "\udfff\ud800",
    "\ue000\uf8ff\U000f0000",
    "\ufeff\u202e\u2028",
    "\U0001f469\u200d\U0001f4bb",
    "{{ messages }}{% raw %}",
    "[" * 200,
    '{"a":' * 100,
    "1e999",
    "a" * 3000,
    r"(a+)+$",
    r"\p{Greek}{1000000}",
    "(?=a)",
    "$ref",
    "%json {}",
    'start: "a" start',
    "start: /./",
    "x-guidance",
    "",
]
characters = st.characters(exclude_categories=())
text = st.one_of(st.text(characters, max_size=20), st.lists(st.sampled_from(HOSTILE), max_size=3).map("".join))
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), text)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)),
    max_leaves=6,
)


def mostly(usual: st.SearchStrategy[Any], wild: st.SearchStrategy[Any] = values) -> st.SearchStrategy[Any]:
    """`wild` now and then: where much is wrong with an input, all but the first goes unseen."""
    return st.sampled_from(range(20)).flatmap(lambda number: wild if number == 19 else usual)


blocks = st.fixed_dictionaries({}, optional={"type": mostly(st.just("text")), "text": mostly(text)})
calls = st.fixed_dictionaries(
    {"function": mostly(st.fixed_dictionaries({"name": mostly(text), "arguments": values}))},
    optional={"id": values},
)
messages = st.fixed_dictionaries(
    {"role": mostly(st.sampled_from(["system", "user", "assistant", "tool"]))},
    optional={
        "content": mostly(st.one_of(text, st.lists(blocks, max_size=2))),
        "tool_calls": mostly(st.lists(calls, max_size=2)),
        "name": values,
    },
)
prompts = st.one_of(
    st.lists(messages, max_size=3),
    st.lists(messages, min_size=1, max_size=2),
    text,
    st.lists(st.integers(), max_size=3),
)
keywords: dict[str, st.SearchStrategy[Any]] = {
    "type": mostly(st.sampled_from(["object", "string", "integer", "array", "null", "boolean", "number"])),
    "enum": st.one_of(st.lists(scalars, max_size=3), values),
    "const": values,
    "pattern": text,
    "format": st.one_of(st.sampled_from(["date", "uuid", "email"]), text),
    "minLength": st.integers(),
    "maximum": st.one_of(st.integers(), st.floats()),
    "multipleOf": st.one_of(st.integers(), st.floats()),
    "required": st.one_of(st.lists(text, max_size=2), values),
    "additionalProperties": st.one_of(st.booleans(), values),
    "$ref": st.one_of(st.sampled_from(["#", "#/$defs/a", "http://127.0.0.1/x.json"]), text),
    "$defs": st.dictionaries(text, values, max_size=2),
    "x-guidance": values,
}
schemas = st.recursive(
    st.one_of(st.fixed_dictionaries({}, optional=keywords), values),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            **keywords,
            "properties": st.one_of(st.dictionaries(text, inner, max_size=3), values),
            "items": inner,
            "anyOf": st.lists(inner, max_size=2),
            "allOf": st.lists(inner, max_size=2),
        },
    ),
    max_leaves=4,
)
functions = st.fixed_dictionaries(
    {"name": mostly(st.sampled_from(["f", "get_weather"]), text)},
    optional={"description": mostly(text), "parameters": schemas, "strict": values},
)
tools = mostly(st.lists(st.fixed_dictionaries({"type": st.just("function"), "function": functions}), max_size=3))
patterns = st.one_of(text, st.text("ab()[]{}|*+?.^$\\dw-1,", max_size=20))
larks = st.one_of(
    text,
    st.lists(st.sampled_from(["start: ", '"a"', "/b+/", "x", "\n", "x: ", "|", "%json {", "}", "<[1]>"])).map("".join),
)
grammars = st.one_of(
    st.fixed_dictionaries({"json_schema": schemas}, optional={"lenient": st.booleans()}),
    st.fixed_dictionaries({"regex": patterns}),
    st.fixed_dictionaries({"lark": larks}),
)
params = st.fixed_dictionaries(
    {"max_new_tokens": st.integers(1, 8)},
    optional={
        "stop": mostly(st.lists(text.filter(bool), max_size=3)),
        "temperature": mostly(st.sampled_from([0.0, 0.5, 1e-45, 1e30])),
        "top_p": mostly(st.floats(0.01, 1.0)),
        "top_k": mostly(st.integers(1, 500)),
        "tool_choice": mostly(st.sampled_from(["auto", "auto", "any", "none"])),
        "parallel_tool_calls": st.booleans(),
        "strict": st.sampled_from([None, True, False]),
        "grammar": grammars,
        "continue_final_message": st.sampled_from([False] * 9 + [True]),
        "logprobs": st.booleans(),
        "top_logprobs": mostly(st.integers(0, 20)),
        "template_kwargs": mostly(st.dictionaries(text, values, max_size=2)),
        "refusal_text": text.filter(bool),
        "seed": mostly(st.integers(0, 2**62)),
    },
)


@pytest.fixture(scope="module")
def counts() -> Iterator[Counter[str]]:
    """How inputs ended."""
    counter: Counter[str] = Counter()
    yield counter
    print(f"\n{sum(counter.values())} inputs:", ", ".join(f"{count} {name}" for name, count in counter.most_common()))


@pytest.fixture(scope="module")
def engine(tiny_pair: Any, tokenizer: Any) -> Iterator[SSDEngine]:
    with SSDEngine(*tiny_pair, tokenizer) as engine:
        yield engine


@settings(
    max_examples=INPUTS, derandomize=INPUTS == 200, suppress_health_check=list(HealthCheck), report_multiple_bugs=False
)
@given(caller=st.sampled_from(CALLERS), prompt=prompts, settings=params, tools=st.one_of(st.none(), tools))
def test_what_comes_back_is_an_answer_or_an_error_of_this_package(
    engine: SSDEngine, counts: Counter[str], caller: Any, prompt: Any, settings: Any, tools: Any
) -> None:
    def ask() -> Any:
        grammar = settings.get("grammar")
        given = {**settings, "grammar": Grammar(**grammar)} if grammar else settings
        return caller(engine, prompt, GenerationParams(**given), tools)

    outcome = Outcome(ask).get()
    assert isinstance(outcome, GenerationResult | SSDError), repr(outcome)
    counts["answers" if isinstance(outcome, GenerationResult) else type(outcome).__name__] += 1
