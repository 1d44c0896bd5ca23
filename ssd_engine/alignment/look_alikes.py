"""The package's own harmless requests that sound harmful."""

from __future__ import annotations

from importlib.resources import files


def look_alikes() -> list[str]:
    """Those written out, and those of patterns: a phrase with `{}` for each of the harmless things behind the bar."""
    folder = files("ssd_engine.alignment")
    written = folder.joinpath("look_alikes.txt").read_text(encoding="utf-8").splitlines()
    patterns = folder.joinpath("look_alike_patterns.txt").read_text(encoding="utf-8").splitlines()
    for line in patterns:
        phrase, things = line.split(" | ")
        written += [phrase.replace("{}", thing) for thing in things.split("; ")]
    return written
