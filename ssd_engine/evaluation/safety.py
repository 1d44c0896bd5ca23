"""`evaluate`: what a pair withstands, and what that costs."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import torch

from ssd_engine.campaigns.journal import Journal
from ssd_engine.campaigns.made_of import claim
from ssd_engine.campaigns.prompt_sets import PROMPT, read_prompt_set
from ssd_engine.campaigns.work import Reporter
from ssd_engine.errors import InvalidRequestError, SSDError
from ssd_engine.evaluation.agreement import Labels
from ssd_engine.evaluation.answering import Answering, key, made_of
from ssd_engine.evaluation.failures import failures_of
from ssd_engine.evaluation.judgements import judge_rows
from ssd_engine.evaluation.judges import Judge, PhraseJudge
from ssd_engine.evaluation.machine import processor
from ssd_engine.evaluation.materials import Materials
from ssd_engine.evaluation.optimised_attack import AttackCost
from ssd_engine.evaluation.safety_markdown import to_markdown
from ssd_engine.evaluation.safety_report import SafetyReport, make_report
from ssd_engine.evaluation.settings import EvalSettings, sweep_configs
from ssd_engine.evaluation.sweep import SweepReport, make_sweep
from ssd_engine.evaluation.trials import Trial, attack_trials, attacked_trials, prompt_trials
from ssd_engine.models.checkpoints import LoadOptions
from ssd_engine.models.pair import PairSpec
from ssd_engine.models.resolve import resolve_spec


@dataclass(frozen=True, kw_only=True)
class EvalSources:
    """Where the prompts come from: files or datasets of the hub."""

    harmful: Sequence[str] = ()
    """`goal`, and `target` (the beginning of an answer that complies) if there."""
    attacked: Sequence[str] = ()
    """`goal` and `prompt`: prompts that an attack has made, each file an attack of its own."""
    over_refusal: Sequence[str] = ()
    """`prompt`: harmless, and looks harmful."""
    twins: Sequence[str] = ()
    """`prompt`, and `target` if there: harmless, asked in the forms of the attacks; none: the package's own."""
    utility: Sequence[str] = ()
    """`prompt` and `goal`: a problem and its number."""
    ordinary: Sequence[str] = ()
    """`prompt`."""

    @classmethod
    def own(cls) -> Self:
        """The package's own small sets, for a first look."""
        names = ("harmful", "twins", "over_refusal", "utility", "ordinary")
        return cls(**{name: [_own(name)] for name in names})

    @property
    def described(self) -> str:
        """What is asked, without where it lies."""
        given = {**vars(self), "twins": self.asked_twins}
        sets = [(name.replace("_", "-"), Path(source).name) for name, found in given.items() for source in found]
        return ", ".join(f"{name} {source}" for name, source in sets)

    def trials(self, settings: EvalSettings) -> list[Trial]:
        """All that is to be asked."""
        forms, sample, prompt = settings.asked_forms, settings.sample, {"prompt": PROMPT}
        trials = attack_trials(self.harmful, forms, sample, settings.attack_tokens)
        trials += attacked_trials(self.attacked, sample, settings.attack_tokens)
        trials += attack_trials(self.asked_twins, forms, sample, settings.over_refusal_tokens, are_twins=True)
        trials += prompt_trials("over-refusal", self.over_refusal, prompt, sample, settings.over_refusal_tokens)
        problem = {**prompt, "goal": ("goal", "answer")}
        trials += prompt_trials("utility", self.utility, problem, sample, settings.utility_tokens)
        trials += prompt_trials("ordinary", self.ordinary, prompt, sample, settings.ordinary_tokens)
        return trials

    @property
    def asked_twins(self) -> Sequence[str]:
        """The harmless requests that are asked in the forms of the attacks: wherever there are attacks, some are."""
        return self.twins or ([_own("twins")] if self.harmful else ())


@dataclass(frozen=True)
class Evaluation:
    """A report, the trade-off if it was asked for, and the files that were written."""

    report: SafetyReport
    sweep: SweepReport | None
    files: list[Path]


def evaluate(
    pair: PairSpec,
    sources: EvalSources,
    output: Path,
    settings: EvalSettings,
    report: Reporter,
    *,
    judges: Sequence[Judge] = (),
    labels: Labels | None = None,
    sweep: bool = False,
) -> Evaluation:
    """Ask all trials of all contestants and write what comes of it to the folder `output`.

    Answers are kept in `answers.jsonl` as they come, and judgements in `judgements.jsonl`; a call with the same pair
    goes on from there. A trial or a judgement that fails is kept there with its error and counted in the report; the
    others go on, and the next call asks it again.

    Args:
        sources: none in it: the package's own.
        judges: beside the one that looks for phrases.
        labels: of answers, by people, for how far each judge agrees with them.
        sweep: ask `ssd` with other settings too, and recommend some.

    Raises:
        InvalidDataError, InvalidRequestError: a set or a setting cannot be used, or `output` holds another pair's.
        ModelLoadError: a model cannot be loaded.
        SSDError: every trial failed.
    """
    pair = resolve_spec(pair)
    sources = sources if any(vars(sources).values()) else EvalSources.own()
    trials = sources.trials(settings)
    swept = [trial for trial in trials if trial.measure in ("attack", "over-refusal")]
    if sweep and not ("ssd" in settings.contestants and len({trial.measure for trial in swept}) == 2):
        raise InvalidRequestError(
            "a sweep weighs attacks against over-refusal: give --harmful, or --attacked and --over-refusal, and leave "
            "ssd among the contestants"
        )
    claim(output, made_of(pair))
    materials = Materials(Journal(output / "made.jsonl"), report)
    answering = Answering(pair, Journal(output / "answers.jsonl"), materials, report)
    configs = sweep_configs(pair.settings) if sweep else [pair.settings]
    report.note(_announcement(trials, answering, settings, pair))
    answering.run(trials, settings.contestants, [pair.settings])
    if sweep:
        answering.run(swept, ["ssd"], configs)
    ordinary = [trial for trial in trials if trial.measure == "ordinary"][: settings.speed_prompts]
    if ordinary:
        answering.measure_speed(ordinary, settings.contestants)
    asked = {
        f"answers of {name}": [
            *(key(trial, name, pair.settings) for trial in trials),
            *(f"speed/{key(trial, name, pair.settings)}" for trial in ordinary),
        ]
        for name in settings.contestants
    }
    rows = _answers(asked, answering, output)
    if sweep:
        asked["answers of the sweep"] = [key(trial, "ssd", config) for config in configs for trial in swept]
    failures = [failed for what, keys in asked.items() for failed in failures_of(what, keys, answering.failures)]
    every_judge = [PhraseJudge(), *judges]
    judged = judge_rows(rows, every_judge, Journal(output / "judgements.jsonl"), report)
    found = make_report(
        rows,
        pair.title,
        every_judge,
        judged.verdicts,
        pair.settings,
        _environment(pair, sources),
        failures=[*failures, *judged.failures],
        labels=labels,
    )
    trade_off = make_sweep(answering.rows, swept, configs) if sweep else None
    files = _write(output, found, trade_off)
    for failed in found.failures:
        report.note(f"{failed}. The same command asks again.")
    if not any(path.suffix == ".png" for path in files):
        report.note('There are no plots: pip install "ssd-integrations[plot]"')
    return Evaluation(found, trade_off, files)


def _announcement(trials: Sequence[Trial], answering: Answering, settings: EvalSettings, pair: PairSpec) -> str:
    """How much there is to do, before it is done."""
    missing = [
        trial.max_new_tokens
        for name in settings.contestants
        for trial in trials
        if key(trial, name, pair.settings) not in answering.rows
    ]
    return (
        f"{len(trials):,} requests and {len(settings.contestants)} contestants: {len(missing):,} answers are to come, "
        f"of at most {sum(missing):,} tokens"
    )


def _own(name: str) -> str:
    """The package's own set of that name."""
    return str(Path(__file__).with_name("sets") / f"{name}.json")


def _answers(asked: Mapping[str, Sequence[str]], answering: Answering, output: Path) -> list[dict[str, Any]]:
    """The rows of all that was asked and answered."""
    rows = [answering.rows[name] for keys in asked.values() for name in keys if name in answering.rows]
    if not rows:
        failed = (answering.failures[name] for keys in asked.values() for name in keys if name in answering.failures)
        raise SSDError(
            f"no trial was answered, the first failed with {next(failed, 'no error')}; every error stands in "
            f"{output / 'answers.jsonl'}"
        )
    return rows


def _environment(pair: PairSpec, sources: EvalSources) -> dict[str, Any]:
    return {
        "sets": sources.described,
        "searched against this pair": _searched(sources),
        "draft adapter": pair.draft_adapter and Path(pair.draft_adapter).name,
        "quantization": _quantization(pair),
        "processor": f"{os.cpu_count()} x {processor()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": version("torch"),
        "transformers": version("transformers"),
        "date": datetime.date.today().isoformat(),
    }


def _quantization(pair: PairSpec) -> str | None:
    target, draft = ("int8" if how.is_int8 else None for how in LoadOptions.of(pair))
    return target if target == draft else f"{target} (target), {draft} (draft)"


def _searched(sources: EvalSources) -> str:
    """What the optimised attacks took that are asked."""
    fields = {"goal": ("goal",), "prompt": ("prompt",)}
    costs = [(Path(source).name, AttackCost.of(read_prompt_set(source, fields))) for source in sources.attacked]
    return ", ".join(f"{name} ({cost})" for name, cost in costs if cost is not None)


def _write(output: Path, found: SafetyReport, sweep: SweepReport | None) -> list[Path]:
    from ssd_engine.evaluation.safety_plots import draw

    plots = draw(found, sweep, output)
    markdown = to_markdown(found, [path.name for path in plots])
    document = found.to_json()
    if sweep is not None:
        markdown += sweep.to_markdown()
        document["sweep"] = sweep.to_json()
    files = [output / "report.md", output / "report.json"]
    files[0].write_text(markdown, encoding="utf-8")
    files[1].write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return [*files, *plots]
