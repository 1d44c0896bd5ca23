"""`align`: from a pair and sets of prompts to a safe draft's adapter."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_engine.alignment.agent_requests import agent_requests
from ssd_engine.alignment.answers import Answer, Question, harmless_answers, harmless_questions
from ssd_engine.alignment.beginnings import AFTER_OPENING, Beginning, Harmful, make_beginnings
from ssd_engine.alignment.card import DataSource, model_card
from ssd_engine.alignment.disguises import FRAMES, NOISE
from ssd_engine.alignment.examples import Ending, Example, ExampleMaker, Kind, split
from ssd_engine.alignment.look_alikes import look_alikes
from ssd_engine.alignment.own_requests import own_requests
from ssd_engine.alignment.settings import AlignSettings, Writer
from ssd_engine.alignment.styles import STYLES
from ssd_engine.campaigns.journal import Journal
from ssd_engine.campaigns.made_of import claim, digest
from ssd_engine.campaigns.prompt_sets import GOAL, PROMPT, read_prompt_set
from ssd_engine.campaigns.work import AT_ONCE, Reporter
from ssd_engine.errors import InvalidDataError, InvalidRequestError, ModelLoadError
from ssd_engine.models.pair import PairSpec, Sides
from ssd_engine.models.resolve import resolve_spec

if TYPE_CHECKING:
    from ssd_engine.alignment.training import Validation
    from ssd_engine.pair_engine import SSDEngine

_HARMFUL_FIELDS = {"goal": GOAL}
_ORDINARY_FIELDS = {"prompt": PROMPT}


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where the prompts come from: files or datasets of the hub."""

    harmful: Sequence[str]
    ordinary: Sequence[str]
    look_alikes: Sequence[str] = ()
    """None given: the package's own."""


class Prompts:
    """The prompts of all sets, read and checked."""

    def __init__(self, sources: Sources, *, with_agents: bool, with_own_requests: bool = False) -> None:
        if not sources.harmful:
            raise InvalidRequestError("there is no harmful set: give one or more files or dataset ids with --harmful")
        if not sources.ordinary:
            raise InvalidRequestError("there is no ordinary set: give one or more files or dataset ids with --ordinary")
        self.described: list[DataSource] = []
        self.harmful = [
            Harmful(row["goal"], row["target"] if isinstance(row.get("target"), str) else None)
            for row in self._read("harmful", sources.harmful, _HARMFUL_FIELDS)
        ]
        if with_own_requests:
            own = own_requests()
            self.harmful += [Harmful(goal) for goal in own]
            self.described.append(DataSource("harmful", "requests, of ssd-integrations", len(own)))
        self.ordinary = [
            _question(source, number, row)
            for source in sources.ordinary
            for number, row in enumerate(self._read("ordinary", [source], _ORDINARY_FIELDS), 1)
        ]
        if with_agents:
            self._add_agents()
        if sources.look_alikes:
            rows = self._read("look-alikes", sources.look_alikes, _ORDINARY_FIELDS)
            self.look_alikes = [row["prompt"] for row in rows]
        else:
            self.look_alikes = look_alikes()
            self.described.append(DataSource("look-alikes", "of ssd-integrations", len(self.look_alikes)))

    @property
    def digest(self) -> str:
        """A mark of all that is read and of what is put around it."""
        harmful = [[item.goal, item.opening] for item in self.harmful]
        ordinary = [asdict(question) for question in self.ordinary]
        return digest([harmful, ordinary, self.look_alikes, STYLES, AFTER_OPENING, FRAMES, NOISE])

    def _add_agents(self) -> None:
        agents = agent_requests()
        self.ordinary += [_question("", number, row) for number, row in enumerate(agents, 1)]
        self.described.append(DataSource("ordinary", "agents, of ssd-integrations", len(agents)))

    def _read(self, role: str, sources: Sequence[str], fields: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
        rows = []
        for source in sources:
            found = read_prompt_set(source, fields)
            self.described.append(DataSource(role, source, len(found)))
            rows += found
        return rows


def _question(source: str, number: int, row: Mapping[str, Any]) -> Question:
    """A row of an ordinary set, with its instructions, tools and messages, if it has some."""
    texts = {name: row.get(name) or "" for name in ("system", "answer")}
    tools, turns = row.get("tools") or [], row.get("turns") or []
    for name, text in texts.items():
        if not isinstance(text, str):
            raise InvalidDataError(f"{source}, row {number}: field {name!r} is {text!r}; it has to be text")
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) and "role" in turn for turn in turns):
        raise InvalidDataError(f"{source}, row {number}: field 'turns' is {turns!r}; it has to be a list of messages")
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) and "function" in tool for tool in tools):
        raise InvalidDataError(
            f"{source}, row {number}: field 'tools' is {tools!r}; it has to be a list of OpenAI-style specifications"
        )
    tools, turns = (json.dumps(items) if items else "" for items in (tools, turns))
    return Question(row["prompt"], tools=tools, turns=turns, system=texts["system"], answer=texts["answer"])


_LOADING = "Loading the draft"


def align(
    pair: PairSpec,
    sources: Sources,
    output: Path,
    settings: AlignSettings,
    report: Reporter,
    *,
    start: str | None = None,
    resume: bool = False,
    merged: Path | None = None,
) -> Validation:
    """Make a safety adapter for the pair's draft in the folder `output`.

    Texts are written, and the probe is made, by models that are loaded as `pair` says; the training is in float32.

    Args:
        pair: what is aligned, without the adapter that its draft may come with.
        start: folder of an adapter to go on from.
        output: gets the adapter and its card; what is needed to go on is in its folder `work`.
        resume: go on from where an earlier call with the same settings was killed.
        merged: folder for the draft with the adapter merged into it, for engines that take no adapter.

    Returns:
        How the draft with the adapter does on what was kept from training.

    Raises:
        InvalidDataError, InvalidRequestError: a set or a setting cannot be used.
        ModelLoadError: a model cannot be loaded; `VocabularyMismatchError` where the two do not go together.
    """
    from ssd_engine.alignment.probe import make_signals
    from ssd_engine.alignment.training import train_adapter, validate
    from ssd_engine.models.checkpoints import (
        BASE_RECORD,
        LoadOptions,
        fingerprint,
        load_model,
        load_tokenizer,
        load_unprepared,
    )

    prompts = Prompts(sources, with_agents=settings.agents, with_own_requests=settings.own_requests)
    names, pair = pair.names, resolve_spec(pair).replaced(draft_adapter=None)
    draft_source, how = str(pair.draft), LoadOptions.of(pair)[1]
    tokenizer = load_tokenizer(draft_source, pair.draft_revision)
    if tokenizer.chat_template is None:
        raise ModelLoadError(f"{draft_source} has no chat template, so it is no instruct model; align one that is")
    work = output / "work"
    models = {"target": pair.target, "draft": pair.draft, "target_name": names.target, "draft_name": names.draft}
    revisions = {"target_revision": pair.target_revision, "draft_revision": pair.draft_revision}
    quantizations = dict(zip(("target_quantization", "draft_quantization"), pair.quantizations, strict=True))
    made_by = {**models, **revisions, **quantizations, "dtype": pair.dtype, "draft_adapter": start}
    if not claim(work, {**made_by, **settings.model_dump(), "data": prompts.digest}) and not resume:
        raise InvalidRequestError(
            f"{output} holds an alignment already: --resume goes on with it, or give another --output"
        )
    training, validation = _examples(pair, names, prompts, ExampleMaker(tokenizer, settings), settings, work, report)
    report.note(f"{len(training)} examples to train on, {len(validation)} to validate with.")
    # In float32: in 16 bit, steps as small as these are lost in rounding.
    report.step(_LOADING, 0, 0)
    model = load_unprepared(draft_source, replace(how, dtype="float32", quantization=None))
    base = {"name": names.draft, "fingerprint": fingerprint(model)}
    adapted, done = train_adapter(model, training, validation, settings, work / "checkpoints", report, start=start)
    _save(adapted, pair, names.draft, output)
    (output / BASE_RECORD).write_text(json.dumps(base) + "\n", encoding="utf-8")
    del adapted, model
    report.step(_LOADING, 0, 0)
    shipped = load_unprepared(draft_source, replace(how, quantization=None), output)
    if merged is not None:
        shipped.save_pretrained(str(merged))
        tokenizer.save_pretrained(str(merged))
    report.note("The adapter as it is stored, merged into the draft as an engine does it:")
    as_shipped = validate(shipped.float(), validation, settings, work / "validation", report)
    del shipped
    report.step(_LOADING, 0, 0)
    draft = load_model(draft_source, how, output)
    signals = make_signals(draft, training, validation, settings, base["fingerprint"], report)
    for folder in (output, merged) if merged is not None else (output,):
        signals.save(folder)
    recoveries = _endings(training, "recovery")
    counts = {
        "recovery": sum(not ending.is_start for ending in recoveries),
        "start": sum(ending.is_start for ending in recoveries),
        "agreement": len(_endings(training, "agreement")),
    }
    counts["validation"] = sum(len(example.endings) for example in validation)
    card = model_card(
        names.draft,
        names.target,
        prompts.described,
        counts,
        settings,
        done,
        as_shipped,
        None if start is None else Path(start),
    )
    (output / "README.md").write_text(card, encoding="utf-8")
    history = {**asdict(done), "as_shipped": asdict(as_shipped)}
    (output / "training.json").write_text(json.dumps(history, indent=2) + "\n", encoding="utf-8")
    return as_shipped


def _endings(examples: Sequence[Example], kind: Kind) -> list[Ending]:
    return [ending for example in examples if example.kind == kind for ending in example.endings]


def _save(adapted: Any, pair: PairSpec, draft_name: str, output: Path) -> None:
    """The adapter in the checkpoint's own type, where that has 16 bits, and with no path of this machine in it."""
    from ssd_engine.models.checkpoints import load_config

    dtype = load_config(str(pair.draft), pair.draft_revision).dtype
    if dtype is not None and dtype.itemsize == 2:
        adapted.to(dtype)
    adapted.peft_config["default"].base_model_name_or_path = draft_name
    adapted.save_pretrained(str(output), save_embedding_layers=False)  # nothing else is trained


def _examples(
    pair: PairSpec,
    names: Sides,
    prompts: Prompts,
    make: ExampleMaker,
    settings: AlignSettings,
    work: Path,
    report: Reporter,
) -> tuple[list[Example], list[Example]]:
    """Examples to train on and to validate with; no request and no prompt is in both."""
    rng = random.Random(settings.seed)
    share = settings.validation_share
    asked, look_alikes, harmful = (
        split(items, share, rng)
        for items in ([question.prompt for question in prompts.ordinary], prompts.look_alikes, prompts.harmful)
    )
    # By their prompts, which some have in common.
    ordinary = [[question for question in prompts.ordinary if question.prompt in side] for side in map(set, asked)]
    answers = [[Answer(item, (), item.answer) for item in side if item.answer] for side in ordinary]
    questions = [
        harmless_questions([item for item in side if not item.answer], side_look_alikes, settings)
        for side, side_look_alikes in zip(ordinary, look_alikes, strict=True)
    ]
    journal = Journal(work / "answers.jsonl")
    beginnings: list[list[Beginning]] = []
    # One after the other: there may not be room for both.
    for writer in ("target", "draft") if settings.writer == "draft" else ("target",):
        own = [[question for question in side if _writer(question, settings) == writer] for side in questions]
        if writer != settings.writer and not any(own):
            continue
        report.step(f"Loading the {writer}", 0, 0)
        with _writing(pair, names, writer) as engine:
            for side_answers, side in zip(answers, own, strict=True):
                side_answers += harmless_answers(engine, side, settings, journal, report)
            if writer == settings.writer:
                beginnings = [make_beginnings(engine, requests, settings, report) for requests in harmful]
    training, validation = (
        [
            *(make.agreement(answer) for answer in side_answers),
            *chain.from_iterable(make.recoveries(beginning, side_answers) for beginning in side_beginnings),
        ]
        for side_answers, side_beginnings in zip(answers, beginnings, strict=True)
    )
    return training, validation


def _writer(question: Question, settings: AlignSettings) -> Writer:
    """Who answers a question: a target knows better than its draft when to call a tool and what to make of a result."""
    return "target" if question.system or question.tools else settings.writer


def _writing(pair: PairSpec, names: Sides, writer: Writer) -> SSDEngine:
    """An engine whose target is the model that writes."""
    from ssd_engine.pair_engine import SSDEngine

    if writer == "target":
        return SSDEngine.from_spec(pair.replaced(name=names.target, max_batch_size=AT_ONCE))
    draft_alone = pair.replaced(
        target=pair.draft,
        target_revision=pair.draft_revision,
        target_quantization=pair.quantizations[1],
        name=names.draft,
        max_batch_size=AT_ONCE,
    )
    return SSDEngine.from_spec(draft_alone)
