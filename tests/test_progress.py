"""What takes long shows that it goes on: on a terminal, and there alone."""

from __future__ import annotations

import subprocess
import sys

from command_cases import Terminal, offline, pair  # noqa: F401 (fixtures)

from ssd_engine.cli.console import WorkProgress, stderr

LOAD = (
    "import sys\n"
    "from ssd_engine import SSDEngine\n"
    "SSDEngine.from_pretrained(sys.argv[2], sys.argv[4], quantization='int8').close()"
)


def test_a_command_shows_each_step_until_the_answer_begins(pair: list[str]) -> None:
    screen = Terminal.of_ssd("run", "hello", *pair, "--max-tokens", "4").read_to_the_end()
    steps = [screen.index(step) for step in ("Starting", "Loading the models", "Reading the prompt", "4 tokens ·")]
    assert steps == sorted(steps)


def test_an_engine_shows_how_far_its_weights_are(pair: list[str]) -> None:
    screen = Terminal("-c", LOAD, *pair).read_to_the_end()
    for step in ("Loading weights: 100%", "Packing weights: 100%"):
        assert screen.count(step) >= 2, "of both models"


def test_a_pipe_gets_no_bars(pair: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", LOAD, *pair], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_work_whose_size_is_not_known_is_named_once() -> None:
    with stderr.capture() as captured, WorkProgress() as report:
        report.step("Loading the models", 0, 0)
        for done in range(4):
            report.step("Answers", done, 3)
        report.step("Loading the draft", 0, 0)
    lines = ["Loading the models", *(f"Answers: {done}/3" for done in range(4)), "Loading the draft"]
    assert captured.get().splitlines() == lines
