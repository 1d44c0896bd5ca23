"""The package's own harmful requests, which are refused beside those that are given."""

from __future__ import annotations

from importlib.resources import files


def own_requests() -> list[str]:
    """Requests in the words of look-alikes, and in sixteen languages in which there are look-alikes too."""
    written = files("ssd_engine.alignment").joinpath("harmful_requests.txt").read_text(encoding="utf-8")
    return written.splitlines()
