"""Benchmarks and examples are programs that nothing imports: each has to load, or it fails only when it is wanted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path for folder in ("benchmarks", "examples") for path in (ROOT / folder).glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_script_loads(script: Path) -> None:
    """All but what stands under `if __name__ == "__main__"`."""
    code = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='script')"
    done = subprocess.run(
        [sys.executable, "-c", code, str(script)], cwd=script.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
