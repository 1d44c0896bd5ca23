"""`ssd bench`, as it is typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def bench(folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """Its report, and what it printed."""
    report_file = folder / "report.json"
    command = [sys.executable, "-c", "from ssd_engine.cli import main; main()", "bench", "--output", str(report_file)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(report_file.read_text()), done.stdout
