"""Checkpoints of an alignment: one that cannot be read, or was not finished, costs nothing but its steps."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from alignment_cases import SMALL, align, data, said  # noqa: F401 (fixtures)

from ssd_engine.alignment.checkpoints import last_whole_checkpoint
from ssd_engine.alignment.training import _Reports


@pytest.fixture(scope="module")
def stopped(
    tmp_path_factory: pytest.TempPathFactory, pair_options: list[str], data: list[str]
) -> tuple[Path, list[str]]:
    """An alignment that was killed at step 25, after the checkpoints of steps 10 and 20, and how it was started."""
    output = tmp_path_factory.mktemp("stopped") / "adapter"
    arguments = [*pair_options, *data, *SMALL, "--epochs", "8", "--patience", "3"]
    on_step_end = _Reports.on_step_end

    def killed(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == 25:
            raise KeyboardInterrupt
        on_step_end(self, args, state, control, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Reports, "on_step_end", killed)
        assert align("--output", str(output), *arguments).exit_code != 0
    assert {path.name for path in (output / "work" / "checkpoints").iterdir()} == {"checkpoint-10", "checkpoint-20"}
    return output, arguments


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_checkpoint_that_cannot_be_read_is_left_as_it_is(stopped: tuple[Path, list[str]], tmp_path: Path) -> None:
    """As on a disk or a share that fails for a while: here, the state is a link that leads back to itself."""
    output = tmp_path / "adapter"
    shutil.copytree(stopped[0], output)
    last = output / "work" / "checkpoints" / "checkpoint-20"
    before = files_of(last)
    state = last / "trainer_state.json"
    content = state.read_bytes()
    state.unlink()
    state.symlink_to(state.name)
    failed = align("--output", str(output), *stopped[1], "--resume")
    assert failed.exit_code == 1
    assert "checkpoint-20 cannot be read: " in said(failed)
    assert "Nothing in it was changed" in said(failed)
    state.unlink()
    state.write_bytes(content)
    assert files_of(last) == before
    resumed = align("--output", str(output), *stopped[1], "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert "Going on from the checkpoint of step 20." in said(resumed)


@pytest.mark.parametrize("content", [None, "", '{"epoch": 1.0, "log_hi'])
def test_an_unfinished_checkpoint_is_kept_under_another_name_and_the_one_before_is_used(
    stopped: tuple[Path, list[str]], tmp_path: Path, content: str | None
) -> None:
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(stopped[0] / "work" / "checkpoints", checkpoints)
    (checkpoints / "checkpoint-best").mkdir()  # of the user's own
    for again in ("", "-2"):
        last = checkpoints / "checkpoint-20"
        if not last.exists():  # the training has come there again, and was killed again
            shutil.copytree(stopped[0] / "work" / "checkpoints" / "checkpoint-20", last)
        state = last / "trainer_state.json"
        state.unlink() if content is None else state.write_text(content)
        left = files_of(last)
        notes: list[str] = []
        reporter = SimpleNamespace(note=notes.append, step=lambda *_: None)
        assert last_whole_checkpoint(checkpoints, reporter) == str(checkpoints / "checkpoint-10")
        assert files_of(checkpoints / f"unfinished-checkpoint-20{again}") == left
        assert "checkpoint-20 was not written to its end" in notes[0]
        assert not last.exists()
