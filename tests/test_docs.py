"""README and docs: links lead somewhere, commands and their options exist, and code that can run here runs."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import ROOT

from ssd_engine import SSDEngine
from ssd_engine.cli import app

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
ELSEWHERE = ("org/", "127.0.0.1")
"""What stands in code that needs models of somebody, or a server (which `test_vllm_server.py` has)."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return [match[1] for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)]


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{target} is not there"
        assert not anchor or anchor in anchors(linked), f"{target}: no such heading"


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command line, without what follows a pipe or an ampersand."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\||&(?=\s|$)|;", line.partition(" #")[0]):
                words = shlex.split(part.replace("...", ""))
                if words:
                    yield words


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_their_options_exist(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for words in commands(page):
        if words[0] == "make":
            assert targets.issuperset(word for word in words[1:] if "=" not in word), words
        if words[0] == "python" and words[1:2] and words[1].endswith(".py"):
            assert (ROOT / words[1]).exists(), words
        if words[0] != "ssd":
            continue
        command = group
        for word in words[1:]:
            if hasattr(command, "commands") and word in command.commands:
                command = command.commands[word]
            elif word.startswith("--") and word != "--help":
                options = {
                    option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
                }
                assert word.partition("=")[0] in options, f"{' '.join(words)}: no option {word}"
        assert command is not group or words[1:2] in (["--help"], ["--version"], []), f"{words[1]} is no command"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_is_python(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, name_of(page), "exec")


def can_run(code: str) -> bool:
    return not any(word in code for word in ELSEWHERE)


WITH_CODE = [page for page in PAGES if any(map(can_run, blocks(page, "python")))]


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_code_runs_on_the_default_pair(page: Path, real_engine: SSDEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block after block, as a reader would; names of one block are there in the next."""
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        if can_run(block):
            exec(compile(block, name_of(page), "exec"), names)


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name_of)
def test_a_notebook_shows_what_its_cells_gave(notebook: Path) -> None:
    """And nothing of the machine that it ran on."""
    assert all(cell["execution_count"] and cell["outputs"] for cell in code_cells(notebook))
    assert not re.search(r"/(root|home|work|tmp)/|stderr", notebook.read_text(encoding="utf-8"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name_of)
def test_a_notebook_runs_on_the_default_pair(notebook: Path, real_engine: SSDEngine) -> None:
    names: dict[str, Any] = {}
    for cell in code_cells(notebook):
        exec(compile("".join(cell["source"]), name_of(notebook), "exec"), names)


def test_the_site_is_built_without_a_warning() -> None:
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "griffe:" not in done.stdout + done.stderr, done.stdout
    pages = {str(path.relative_to(ROOT / "docs").with_suffix("")) for path in (ROOT / "docs").rglob("*.md")}
    nav = set(re.findall(r"^ +- .*: ([\w/-]+)\.md$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    assert pages == nav, "each page has its place in the site"
    site = ROOT / "build/site"
    assert pages <= {str(path.relative_to(site).with_suffix("")) for path in site.rglob("*.html")}


def test_the_page_of_commands_is_that_of_today(tmp_path: Path) -> None:
    """It is written anew by `make docs`."""
    file = tmp_path / "commands.md"
    command = [sys.executable, "-m", "typer", "ssd_engine.cli.app", "utils", "docs"]
    subprocess.run([*command, "--name", "ssd", "--title", "Commands", "--output", str(file)], check=True)
    assert file.read_text(encoding="utf-8") == (ROOT / "docs/reference/commands.md").read_text(encoding="utf-8")
