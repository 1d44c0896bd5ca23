"""A package index and a cache of a test's own."""

from __future__ import annotations

import hashlib
import random
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants

from ssd_engine.models.presets import (
    GGUFSource,
    HubSource,
    WheelParts,
)

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
