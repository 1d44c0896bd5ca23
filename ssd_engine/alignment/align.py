"""`align`: from a pair and sets of prompts to a safe draft's adapter."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_engine.alignment.answers import target_answers
from ssd_engine.alignment.beginnings import Harmful, make_beginnings
from ssd_engine.alignment.card import DataSource, model_card
from ssd_engine.alignment.examples import Example, ExampleMaker, split
from ssd_engine.alignment.settings import AlignSettings
from ssd_engine.errors import InvalidRequestError, ModelLoadError
from ssd_engine.journal import Journal
from ssd_engine.prompt_sets import read_prompt_set
from ssd_engine.work import Reporter

if TYPE_CHECKING:
    from ssd_engine.alignment.training import TrainingReport

_HARMFUL_FIELDS = {"goal": ("goal", "prompt", "Behavior", "behavior")}
_ORDINARY_FIELDS = {"prompt": ("prompt", "question", "instruction")}


@dataclass(frozen=True)
class Sources:
    """Where the prompts come from: files or datasets of the hub."""

    harmful: Sequence[str]
    ordinary: Sequence[str]
    look_alikes: Sequence[str] = ()
    """None given: the package's own."""


@dataclass(frozen=True)
class PairSource:
    """What is aligned: hub ids or folders."""

    target: str
    draft: str
    target_name: str
    draft_name: str
    """What the card calls them."""
    quantization: str | None = None
    """Of both models while answers are made; the training uses the draft as it is."""


class Prompts:
    """The prompts of all sets, read and checked."""

    def __init__(self, sources: Sources) -> None:
        if not sources.harmful:
            raise InvalidRequestError("there is no harmful set: give one or more files or dataset ids with --harmful")
        if not sources.ordinary:
            raise InvalidRequestError("there is no ordinary set: give one or more files or dataset ids with --ordinary")
        self.described: list[DataSource] = []
        self.harmful = [
            Harmful(row["goal"], row["target"] if isinstance(row.get("target"), str) else None)
            for row in self._read("harmful", sources.harmful, _HARMFUL_FIELDS)
        ]
        ordinary = self._read("ordinary", sources.ordinary, _ORDINARY_FIELDS)
        look_alikes = self._read("look-alikes", sources.look_alikes, _ORDINARY_FIELDS)
        self.harmless = [row["prompt"] for row in [*ordinary, *look_alikes]]
        if not sources.look_alikes:
            own = files("ssd_engine.alignment").joinpath("look_alikes.txt").read_text(encoding="utf-8").splitlines()
            self.harmless += own
            self.described.append(DataSource("look-alikes", "of ssd-integrations", len(own)))

    def _read(self, role: str, sources: Sequence[str], fields: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
        rows = []
        for source in sources:
            found = read_prompt_set(source, fields)
            self.described.append(DataSource(role, source, len(found)))
            rows += found
        return rows


def align(
    pair: PairSource,
    sources: Sources,
    output: Path,
    settings: AlignSettings,
    report: Reporter,
    *,
    resume: bool = False,
    merged: Path | None = None,
) -> TrainingReport:
    """Make a safety adapter for the pair's draft in the folder `output`.

    Args:
        output: gets the adapter and its card; what is needed to go on is in its folder `work`.
        resume: go on from where an earlier call with the same settings was killed.
        merged: folder for the draft with the adapter merged into it, for engines that take no adapter.

    Raises:
        InvalidDataError, InvalidRequestError: a set or a setting cannot be used.
        ModelLoadError: a model cannot be loaded; `VocabularyMismatchError` where the two do not go together.
    """
    from ssd_engine.alignment.training import train_adapter
    from ssd_engine.backends.transformers.loader import LoadOptions, load_tokenizer, load_unprepared

    prompts = Prompts(sources)
    tokenizer = load_tokenizer(pair.draft)
    if tokenizer.chat_template is None:
        raise ModelLoadError(f"{pair.draft} has no chat template, so it is no instruct model; align one that is")
    work = _open_work(output, {"pair": asdict(pair), "settings": settings.model_dump()}, resume)
    training, validation = _examples(pair, prompts, ExampleMaker(tokenizer, settings), settings, work, report)
    report.note(f"{len(training)} examples to train on, {len(validation)} to validate with.")
    # In float32: in 16 bit, steps as small as these are lost in rounding.
    model = load_unprepared(pair.draft, LoadOptions(dtype="float32"))
    adapted, done = train_adapter(model, training, validation, settings, work / "checkpoints", report)
    adapted.peft_config["default"].base_model_name_or_path = pair.draft_name
    adapted.save_pretrained(str(output))
    counts = {kind: sum(example.kind == kind for example in training) for kind in ("recovery", "agreement")}
    counts["validation"] = len(validation)
    card = model_card(pair.draft_name, pair.target_name, prompts.described, counts, settings, done)
    (output / "README.md").write_text(card, encoding="utf-8")
    (output / "training.json").write_text(json.dumps(asdict(done), indent=2) + "\n", encoding="utf-8")
    if merged is not None:
        load_unprepared(pair.draft, adapter=output).save_pretrained(str(merged))
        tokenizer.save_pretrained(str(merged))
    return done


def _open_work(output: Path, made_of: dict[str, Any], resume: bool) -> Path:
    """The folder of what is needed to go on; `InvalidRequestError` where it is another alignment's."""
    work = output / "work"
    record = work / "made_of.json"
    if not record.exists():
        work.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(made_of, indent=2) + "\n", encoding="utf-8")
        return work
    if not resume:
        raise InvalidRequestError(
            f"{output} holds an alignment already: --resume goes on with it, or give another --output"
        )
    earlier = json.loads(record.read_text(encoding="utf-8"))
    changed = [
        f"{name} was {earlier.get(part, {}).get(name)!r} and is {value!r}"
        for part, values in made_of.items()
        for name, value in values.items()
        if earlier.get(part, {}).get(name) != value
    ]
    if changed:
        raise InvalidRequestError(
            f"{output} was begun with other settings: {'; '.join(changed)}; use those, or another --output"
        )
    return work


def _examples(
    pair: PairSource, prompts: Prompts, make: ExampleMaker, settings: AlignSettings, work: Path, report: Reporter
) -> tuple[list[Example], list[Example]]:
    """Examples to train on and to validate with; no request and no prompt is in both."""
    from ssd_engine.engine import SSDEngine

    rng = random.Random(settings.seed)
    with SSDEngine.from_pretrained(
        pair.target,
        pair.draft,
        target_quantization=pair.quantization,
        draft_quantization=pair.quantization,
        name=pair.target_name,
    ) as engine:
        answers = target_answers(
            engine, prompts.harmless, settings.answer_tokens, Journal(work / "answers.jsonl"), report
        )
        beginnings = make_beginnings(engine, prompts.harmful, settings, rng, report)
    sides: list[list[Example]] = [[], []]
    for side, found in zip(sides, split(answers, settings.validation_share, rng), strict=True):
        side += [make.agreement(answer) for answer in found]
    for side, found in zip(sides, split(beginnings, settings.validation_share, rng), strict=True):
        side += [example for beginning in found for example in make.recoveries(beginning, rng)]
    return sides[0], sides[1]
