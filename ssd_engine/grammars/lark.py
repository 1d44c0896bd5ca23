"""Pieces of grammars in llguidance's dialect of Lark."""

from __future__ import annotations

import re


def literal(text: str) -> str:
    """A pattern of this text alone."""
    return regex(re.escape(text))


def regex(pattern: str) -> str:
    """A pattern as it stands between slashes."""
    return re.sub(r"(\\.)|/", lambda match: match[1] or r"\/", pattern, flags=re.DOTALL).replace("\n", r"\n")


def words_unlike(*patterns: str) -> str:
    """A terminal of text that comes to none of `patterns`."""
    return f"/(.|\\n)+/ & ~/({'|'.join(patterns)})(.|\\n)*/" if patterns else "/(.|\\n)+/"
