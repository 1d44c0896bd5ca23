"""What is said where vLLM is not there, or is another one."""

from __future__ import annotations

import pytest

from ssd_engine import SSDEngine
from ssd_engine.backends.vllm import compat
from ssd_engine.errors import InvalidRequestError, ModelLoadError


@pytest.mark.parametrize(("installed", "message"), [(None, "not installed"), ("0.99.1", "0.99.1 is installed")])
def test_a_vllm_that_cannot_serve_is_told_before_anything_is_loaded(
    small_pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch, installed: str | None, message: str
) -> None:
    def version(package: str) -> str:
        if installed is None or package != "vllm":
            raise compat.PackageNotFoundError(package)
        return installed

    monkeypatch.setattr(compat, "version", version)
    with pytest.raises(ModelLoadError, match=rf"{message}.*0\.32\.0"):
        SSDEngine.from_pretrained(*small_pair, backend="vllm")


def test_an_unknown_backend_is_told(small_pair: tuple[str, str]) -> None:
    with pytest.raises(InvalidRequestError, match="backend='onnx'"):
        SSDEngine.from_pretrained(*small_pair, backend="onnx")  # type: ignore[arg-type]
