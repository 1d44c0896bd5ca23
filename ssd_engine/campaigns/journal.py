"""A file of JSON lines that only grows, so that long work goes on from where it was killed."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from ssd_engine.errors import InvalidDataError


class Journal:
    """One JSON object a line. Safe to append to from several threads of one process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def read(self) -> list[dict[str, Any]]:
        """All rows so far; none where the file does not exist. A last line that was not written whole is cut off.

        Raises:
            InvalidDataError: another line is no JSON object.
        """
        if not self._path.exists():
            return []
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(self._path, len(whole))
        return [self._parse(number, line) for number, line in enumerate(whole.splitlines(), 1)]

    def append(self, row: dict[str, Any]) -> None:
        """Add a row; when this returns, the operating system has it."""
        line = json.dumps(row, ensure_ascii=False) + "\n"
        with self._lock, self._path.open("ab") as file:
            file.write(line.encode())

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InvalidDataError(f"{self._path}, line {number} is no JSON: {error}; remove the line") from error
        if not isinstance(row, dict):
            raise InvalidDataError(f"{self._path}, line {number} is no JSON object; remove the line")
        return row
