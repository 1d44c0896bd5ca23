"""Small random models and a small tokenizer made on the spot, and the real default pair."""

from __future__ import annotations

import copy
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from vllm_cases import save_pair

from ssd_engine import SSDConfig, SSDEngine

ROOT = Path(__file__).parent.parent
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# No test is to depend on how busy the machine is.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_configure() -> None:
    """In one of several processes vLLM has a processor of its own: its threads wait for each other by spinning."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None and importlib.util.find_spec("vllm") is not None:
        processors = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {processors[int(worker.removeprefix("gw")) % len(processors)]})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the real pair are marked, so that `-m "not real"` leaves them out."""
    for item in items:
        of_real_pairs = item.path.name in ("test_bridge_real.py", "test_vllm_real_pair.py")
        if of_real_pairs or "real_engine" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real)


CHAT_TEMPLATE = """{%- if tools %}<|im_start|>system
{{ messages[0].content if messages[0].role == 'system' else '' }}# Tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Call with <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>
{% endif %}{%- for message in messages %}
{%- if not (tools and loop.first and message.role == 'system') %}<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] %}
<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

CORPUS = [
    "The quick brown fox jumps over the lazy dog. What is the capital of France? Paris, of course.",
    "Grüße aus Köln! Ça va très bien, merci. 你好,世界。こんにちは 🙂🎉👩‍💻 naïve café",
    "system user assistant tool name arguments weather city",
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with ChatML control tokens and a chat template that takes tools."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    wrapped.add_tokens(["<tool_call>", "</tool_call>"])
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def make_model(
    seed: int, vocab_size: int, hidden_size: int = 32, layers: int = 2, context: int = 2048
) -> PreTrainedModel:
    """A random Qwen2 in float32, wild enough that its greedy text does not fall into a loop at once."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.3,
        eos_token_id=None,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config).eval()


def make_relative(model: PreTrainedModel, seed: int, noise: float) -> PreTrainedModel:
    """A copy of `model` that mostly agrees with it."""
    relative = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in relative.parameters():
            parameter += noise * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return relative


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny_pair(tokenizer: PreTrainedTokenizerFast) -> tuple[PreTrainedModel, PreTrainedModel]:
    target = make_model(1, len(tokenizer))
    return target, make_relative(target, 2, 0.15)


@pytest.fixture
def tiny_engine(
    tiny_pair: tuple[PreTrainedModel, PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> Iterator[SSDEngine]:
    """An engine on a small random pair that often agrees; text is gibberish, in bytes of all kinds."""
    with SSDEngine(*tiny_pair, tokenizer=tokenizer, name="tiny") as engine:
        yield engine


@pytest.fixture(scope="module")
def wary(tokenizer: PreTrainedTokenizerFast) -> Iterator[SSDEngine]:
    """A pair that never agrees for long, so that Union takes over and holds."""
    config = SSDConfig(bin_size=3, match_threshold=0.9, threshold_decay=0.0, alpha_union=0.0)
    size = len(tokenizer)
    with SSDEngine(make_model(1, size), make_model(99, size), tokenizer, config=config, name="wary") as engine:
        yield engine


@pytest.fixture
def saved_pair(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> dict[str, str]:
    """Folders of a small random pair, under the names that the integrations take."""
    folders = {}
    for seed, role in enumerate(("model", "draft")):
        folder = tmp_path / role
        make_model(seed, len(tokenizer), hidden_size=16, layers=1).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders[role] = str(folder)
    return folders


@pytest.fixture(scope="session")
def small_pair(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    """Folders of a small random pair that vLLM can run too: its attention wants heads of 32."""
    target = make_model(1, len(tokenizer), hidden_size=128)
    return save_pair(tmp_path_factory.mktemp("small-pair"), target, make_relative(target, 2, 0.05), tokenizer)


@pytest.fixture(scope="module")
def embedded(small_pair: tuple[str, str]) -> Iterator[SSDEngine]:
    """The engine in this process, which says what vLLM's answers are to be."""
    with SSDEngine.from_pretrained(*small_pair, dtype="float32") as engine:
        yield engine


@pytest.fixture(scope="session")
def pair_options(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_pair: tuple[PreTrainedModel, PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
) -> list[str]:
    """The options of the command line that name the small pair, in folders."""
    folder = tmp_path_factory.mktemp("pair")
    for name, model in zip(("target", "draft"), tiny_pair, strict=True):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return ["--target", str(folder / "target"), "--draft", str(folder / "draft")]


@pytest.fixture(scope="session")
def real_engine() -> Iterator[SSDEngine]:
    """The real default pair, fetched on first use."""
    from ssd_engine.models.pair import PairSpec
    from ssd_engine.registry import shared_engine

    with shared_engine(PairSpec()) as engine:
        yield engine


def wait_for(condition: Callable[[], bool]) -> None:
    """Until `condition` holds; a failure where it does not within a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
