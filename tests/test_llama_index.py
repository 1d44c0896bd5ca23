"""SSDLLM, as a LlamaIndex user sees it."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import llama_index.core.instrumentation as instrument
import pytest
from llama_index.core.base.llms.types import (
    ChatMessage,
    LLMMetadata,
)
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler, TokenCountingHandler
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.llm import (
    LLMChatEndEvent,
    LLMChatInProgressEvent,
    LLMChatStartEvent,
    LLMCompletionEndEvent,
    LLMCompletionInProgressEvent,
    LLMCompletionStartEvent,
)

from ssd_engine import SSDConfig, SSDEngine
from ssd_engine.errors import EngineClosedError, InvalidRequestError
from ssd_integrations.llama_index import SSDLLM

QUESTION = "How many legs has a spider?"


@pytest.fixture
def llm(tiny_engine: SSDEngine) -> SSDLLM:
    return SSDLLM(engine=tiny_engine, max_tokens=24)


@pytest.fixture
def events() -> Iterator[list[BaseEvent]]:
    """Instrumentation events, in the order seen."""
    seen: list[BaseEvent] = []

    class Recorder(BaseEventHandler):
        def handle(self, event: BaseEvent, **kwargs: Any) -> None:
            seen.append(event)

    dispatcher = instrument.get_dispatcher()
    recorder = Recorder()
    dispatcher.add_event_handler(recorder)
    yield seen
    dispatcher.event_handlers.remove(recorder)


# -- The eight ways to ask --


async def test_the_eight_methods_give_the_same_greedy_text(llm: SSDLLM) -> None:
    messages = [ChatMessage(role="user", content=QUESTION)]
    texts = {
        "complete": llm.complete(QUESTION).text,
        "chat": llm.chat(messages).message.content,
        "stream_complete": list(llm.stream_complete(QUESTION))[-1].text,
        "stream_chat": list(llm.stream_chat(messages))[-1].message.content,
        "acomplete": (await llm.acomplete(QUESTION)).text,
        "achat": (await llm.achat(messages)).message.content,
        "astream_complete": [part async for part in await llm.astream_complete(QUESTION)][-1].text,
        "astream_chat": [part async for part in await llm.astream_chat(messages)][-1].message.content,
    }
    assert texts["complete"]
    assert set(texts.values()) == {texts["complete"]}


def test_deltas_of_a_stream_add_up_and_its_last_part_has_raw(llm: SSDLLM) -> None:
    parts = list(llm.stream_chat([ChatMessage(QUESTION)]))
    assert len(parts) > 1
    text = ""
    for part in parts:
        text += part.delta or ""
        assert (part.message.content or "") == text
    assert [part.raw is not None for part in parts] == [False] * (len(parts) - 1) + [True]

    completion = list(llm.stream_complete(QUESTION))
    assert "".join(part.delta or "" for part in completion) == completion[-1].text == text
    assert completion[-1].raw["usage"] == parts[-1].raw["usage"] | {
        "cached_prompt_tokens": completion[-1].raw["usage"]["cached_prompt_tokens"]
    }


async def test_leaving_a_stream_early_leaves_the_engine_fit(llm: SSDLLM) -> None:
    whole = llm.complete(QUESTION).text
    stream = llm.stream_chat([ChatMessage(QUESTION)])
    next(stream)
    stream.close()
    astream = await llm.astream_chat([ChatMessage(QUESTION)])
    await anext(astream)
    await astream.aclose()
    assert llm.complete(QUESTION).text == whole


def test_raw_and_additional_kwargs_hold_trace_and_usage(llm: SSDLLM, tiny_engine: SSDEngine) -> None:
    response = llm.chat([ChatMessage(QUESTION)])
    usage = response.raw["usage"]
    assert usage["prompt_tokens"] == tiny_engine.count_tokens([{"role": "user", "content": QUESTION}])
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["cached_prompt_tokens"] <= usage["prompt_tokens"]
    assert response.raw["model"] == tiny_engine.name
    assert response.raw["finish_reason"] in ("stop", "length")
    assert response.raw["ssd"]["risk"] in ("none", "elevated")
    assert response.raw["ssd"]["decoding"] == "ssd"
    assert json.loads(json.dumps(response.raw)) == response.raw
    counts = {name: usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    assert response.additional_kwargs == counts
    assert llm.complete(QUESTION).additional_kwargs == counts


def test_metadata_is_the_engines(llm: SSDLLM, tiny_engine: SSDEngine) -> None:
    assert llm.metadata == LLMMetadata(
        context_window=tiny_engine.context_length,
        num_output=24,
        is_chat_model=True,
        is_function_calling_model=True,
        model_name=tiny_engine.name,
    )


# -- Settings --


def test_arguments_of_a_call_go_before_fields(llm: SSDLLM) -> None:
    whole = llm.complete(QUESTION)
    assert whole.raw["usage"]["completion_tokens"] == 24
    assert llm.complete(QUESTION, max_tokens=3).raw["usage"]["completion_tokens"] == 3
    assert llm.complete(QUESTION, max_new_tokens=4).raw["usage"]["completion_tokens"] == 4
    assert llm.complete(QUESTION, decoding="target").raw["ssd"]["decoding"] == "target"
    stop = whole.text[4:6]
    assert llm.complete(QUESTION, stop=[stop]).text == whole.text[: whole.text.index(stop)]


def test_a_seed_makes_sampling_repeatable(llm: SSDLLM) -> None:
    hot = SSDLLM(engine=llm.engine, max_tokens=24, temperature=1.5, seed=7)
    assert hot.complete(QUESTION).text == hot.complete(QUESTION).text
    assert hot.complete(QUESTION, seed=8).text != hot.complete(QUESTION).text


def test_config_of_an_instance_is_used_with_a_shared_engine(llm: SSDLLM) -> None:
    strict = SSDLLM(engine=llm.engine, max_tokens=24, config=SSDConfig(bin_size=3, match_threshold=0.9))
    assert len(strict.complete(QUESTION).raw["ssd"]["match_ratios"]) == 8
    assert len(llm.complete(QUESTION).raw["ssd"]["match_ratios"]) == 24 // llm.engine.config.bin_size


def test_logprobs_come_with_each_token(llm: SSDLLM) -> None:
    response = llm.chat([ChatMessage(QUESTION)], logprobs=True, top_logprobs=2)
    assert response.logprobs is not None
    assert len(response.logprobs) == response.raw["usage"]["completion_tokens"]
    assert all(token[0].logprob <= 0 for token in response.logprobs)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"stop": [""]}, "empty stop string"),
        ({"max_tokens": 0}, "max_new_tokens=0"),
    ],
)
def test_an_unusable_setting_is_named(llm: SSDLLM, setting: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        SSDLLM(engine=llm.engine, **setting)
    with pytest.raises(InvalidRequestError, match=message):
        llm.complete(QUESTION, **setting)


def test_an_unknown_argument_is_named(llm: SSDLLM) -> None:
    with pytest.raises(InvalidRequestError, match="temprature"):
        llm.chat([ChatMessage(QUESTION)], temprature=0.5)
    with pytest.raises(ValueError, match="temprature"):
        SSDLLM(engine=llm.engine, temprature=0.5)


def test_an_engine_and_a_name_exclude_each_other(tiny_engine: SSDEngine) -> None:
    with pytest.raises(InvalidRequestError, match="engine= and model='org/large'"):
        SSDLLM(engine=tiny_engine, model="org/large")


# -- Prompts --


def test_system_prompt_leads_unless_the_conversation_has_one(tiny_engine: SSDEngine) -> None:
    llm = SSDLLM(engine=tiny_engine, max_tokens=4, system_prompt="Answer like a pirate.")
    own = ChatMessage(role="system", content="Answer like a monk.")
    user = ChatMessage(role="user", content=QUESTION)

    def tokens(*messages: tuple[str, str]) -> int:
        return tiny_engine.count_tokens([{"role": role, "content": content} for role, content in messages])

    pirate = tokens(("system", "Answer like a pirate."), ("user", QUESTION))
    monk = tokens(("system", "Answer like a monk."), ("user", QUESTION))
    assert llm.chat([user]).raw["usage"]["prompt_tokens"] == pirate
    assert llm.complete(QUESTION).raw["usage"]["prompt_tokens"] == pirate
    assert llm.chat([own, user]).raw["usage"]["prompt_tokens"] == monk


def test_a_formatted_prompt_goes_without_the_chat_template(llm: SSDLLM, tiny_engine: SSDEngine) -> None:
    response = llm.complete(QUESTION, formatted=True)
    assert response.raw["usage"]["prompt_tokens"] == tiny_engine.count_tokens(QUESTION)
    assert response.text == tiny_engine.generate(QUESTION, llm._params({})).text


def test_prompt_functions_of_the_user_stand_in_for_the_template(tiny_engine: SSDEngine) -> None:
    llm = SSDLLM(
        engine=tiny_engine,
        max_tokens=4,
        completion_to_prompt=lambda prompt: f"Q: {prompt} A:",
        messages_to_prompt=lambda messages: " / ".join(str(message.content) for message in messages),
    )
    assert llm.complete("Why?").raw["usage"]["prompt_tokens"] == tiny_engine.count_tokens("Q: Why? A:")
    chat = llm.chat([ChatMessage("one"), ChatMessage("two")])
    assert chat.raw["usage"]["prompt_tokens"] == tiny_engine.count_tokens("one / two")


# -- Callbacks and instrumentation --


def test_token_counting_handler_counts_with_the_engines_figures(tiny_engine: SSDEngine) -> None:
    counter = TokenCountingHandler(tokenizer=str.split)
    debug = LlamaDebugHandler(print_trace_on_end=False)
    llm = SSDLLM(engine=tiny_engine, max_tokens=8, callback_manager=CallbackManager([counter, debug]))
    usages = [
        llm.complete(QUESTION).raw["usage"],
        llm.chat([ChatMessage(QUESTION)]).raw["usage"],
        list(llm.stream_chat([ChatMessage(QUESTION)]))[-1].raw["usage"],
    ]
    assert counter.prompt_llm_token_count == sum(usage["prompt_tokens"] for usage in usages)
    assert counter.completion_llm_token_count == sum(usage["completion_tokens"] for usage in usages)
    assert len(debug.get_event_pairs(CBEventType.LLM)) == 3


async def test_instrumentation_sees_each_call_and_each_part_of_a_stream(llm: SSDLLM, events: list[BaseEvent]) -> None:
    def seen() -> list[type[BaseEvent]]:
        kinds = [type(event) for event in events if "LLM" in event.class_name()]
        events.clear()
        return kinds

    llm.chat([ChatMessage(QUESTION)])
    assert seen() == [LLMChatStartEvent, LLMChatEndEvent]
    await llm.acomplete(QUESTION)
    assert seen() == [LLMCompletionStartEvent, LLMCompletionEndEvent]
    parts = list(llm.stream_chat([ChatMessage(QUESTION)]))
    assert seen() == [LLMChatStartEvent, *[LLMChatInProgressEvent] * len(parts), LLMChatEndEvent]
    aparts = [part async for part in await llm.astream_complete(QUESTION)]
    assert seen() == [
        LLMCompletionStartEvent,
        *[LLMCompletionInProgressEvent] * len(aparts),
        LLMCompletionEndEvent,
    ]


def test_a_failed_call_is_reported_to_callbacks(tiny_engine: SSDEngine) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    llm = SSDLLM(engine=tiny_engine, callback_manager=CallbackManager([debug]))
    with pytest.raises(InvalidRequestError):
        llm.complete(QUESTION, top_p=2)
    ((_, end),) = debug.get_event_pairs(CBEventType.LLM)
    assert isinstance(end.payload["exception"], InvalidRequestError)


# -- Engines, copies, optional extras --


async def test_instances_that_name_one_pair_share_one_engine(saved_pair: dict[str, str]) -> None:
    llm = SSDLLM(**saved_pair, dtype="float32", max_tokens=8)
    assert "model_name" in llm.to_payload()
    text = (await llm.acomplete(QUESTION)).text
    cautious = SSDLLM(**saved_pair, dtype="float32", max_tokens=8, config=SSDConfig(match_threshold=1.0))
    with llm.engine as engine:
        assert cautious.engine is engine
        assert pickle.loads(pickle.dumps(llm)).engine is engine
        assert SSDLLM.from_dict(llm.to_dict()).complete(QUESTION).text == text


async def test_a_pair_whose_engine_was_closed_is_loaded_again(saved_pair: dict[str, str]) -> None:
    llm = SSDLLM(**saved_pair, dtype="float32", max_tokens=8)
    text = llm.complete(QUESTION).text
    llm.engine.close()
    assert llm.complete(QUESTION).text == text
    llm.engine.close()
    assert llm.to_payload()["model_name"] == saved_pair["model"], "it names the pair and loads nothing"
    assert (await llm.acomplete(QUESTION)).text == text
    llm.engine.close()
    parts = [part async for part in await llm.astream_complete(QUESTION)]
    assert parts[-1].text == text
    llm.engine.close()


def test_an_engine_that_was_given_stays_the_engine_when_it_is_closed(tiny_engine: SSDEngine) -> None:
    llm = SSDLLM(engine=tiny_engine, max_tokens=8)
    tiny_engine.close()
    assert llm.engine is tiny_engine
    with pytest.raises(EngineClosedError):
        llm.complete(QUESTION)


def test_copies_share_the_models(llm: SSDLLM) -> None:
    assert copy.deepcopy(llm).engine is llm.engine
    assert llm.model_copy(update={"temperature": 0.5}).engine is llm.engine
    with pytest.raises(TypeError, match="name the pair instead"):
        pickle.dumps(llm)


def test_a_copy_is_checked_and_has_the_pair_that_it_names(saved_pair: dict[str, str], tiny_engine: SSDEngine) -> None:
    llm = SSDLLM(**saved_pair, dtype="float32", max_tokens=8)
    with llm.engine as engine:
        other = llm.model_copy(update={"model": saved_pair["draft"]})
        with other.engine as other_engine:
            assert other_engine is not engine
            assert other.complete(QUESTION).text != llm.complete(QUESTION).text
    with pytest.raises(InvalidRequestError, match=r"top_p=1\.5"):
        llm.model_copy(update={"top_p": 1.5})
    with pytest.raises(InvalidRequestError, match="temprature"):
        llm.model_copy(update={"temprature": 0.5})
    with pytest.raises(InvalidRequestError, match="engine= and model='org/large'"):
        SSDLLM(engine=tiny_engine).model_copy(update={"model": "org/large"})


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_langchain_is_not_needed() -> None:
    blocked = "import sys; sys.modules |= dict.fromkeys(['langchain', 'langchain_core', 'langgraph']); "
    out = _python(blocked + "from ssd_integrations.llama_index import SSDLLM; print(SSDLLM().class_name())")
    assert out.strip() == "SSDLLM"


def test_without_llama_index_the_error_names_the_extra() -> None:
    out = _python("import sys; sys.modules['llama_index'] = None; import ssd_integrations.llama_index")
    assert "ImportError: " in out
    assert 'pip install "ssd-integrations[llama-index]"' in out
