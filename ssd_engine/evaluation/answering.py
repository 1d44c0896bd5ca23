"""Answers to trials, by one decoding after another, into a journal that a kill cannot take back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ssd_engine.campaigns.journal import Journal
from ssd_engine.campaigns.made_of import MadeOf, digest_of_source
from ssd_engine.campaigns.work import AT_ONCE, Reporter, answered
from ssd_engine.config import GenerationParams, SSDConfig
from ssd_engine.errors import EngineClosedError
from ssd_engine.evaluation.agreement import answer_digest
from ssd_engine.evaluation.contestants import DRAFT_ALONE, Answerer, make_answerer
from ssd_engine.evaluation.materials import Made, Materials
from ssd_engine.evaluation.settings import Contestant
from ssd_engine.evaluation.trials import Trial
from ssd_engine.models.pair import PairSpec
from ssd_engine.pair_engine import SSDEngine
from ssd_engine.rule.scheme import Scheme

if TYPE_CHECKING:
    from collections.abc import Iterator

Way = tuple[Contestant, SSDConfig | None]
"""Who answers; of `ssd` with which settings."""
_MOST_GIVEN = 600
"""Characters of a given beginning that the journal keeps for judges: its end, of all but the longest the whole."""
_HOW = (
    "target_revision",
    "draft_revision",
    "dtype",
    "device",
    "quantization",
    "target_quantization",
    "draft_quantization",
    "compile",
)
"""How models are loaded, as far as answers may depend on it."""


def made_of(pair: PairSpec) -> MadeOf:
    """What a pair's answers depend on, the content of local folders included; the pair is resolved."""
    sources = {name: digest_of_source(getattr(pair, name)) for name in ("target", "draft", "draft_adapter")}
    how = pair.model_dump(include=set(_HOW), exclude_none=True)
    return {**sources, **how, "config": pair.settings.model_dump()}


class Answering:
    """Has trials answered, those alone that the journal has not."""

    def __init__(self, pair: PairSpec, journal: Journal, materials: Materials, report: Reporter) -> None:
        self._pair = pair
        self._journal = journal
        self._materials = materials
        self._report = report
        self.rows: dict[str, dict[str, Any]] = {}
        """The answers, by their keys."""
        self.failures: dict[str, str] = {}
        """The errors of the trials that have no answer, by their keys. The next run asks these again."""
        for row in journal.read():
            self._note(row)

    def run(self, trials: Sequence[Trial], contestants: Iterable[Contestant], configs: Sequence[SSDConfig]) -> None:
        """Answer all trials by all contestants; `ssd` once for each of `configs`, the others once."""
        ways = [way for way in _ways(contestants, configs) if self._missing(trials, *way)]
        wanted = [item for way in ways for trial in self._missing(trials, *way) for item in trial.materials]
        with ExitStack() as stack:
            pair, draft = self._engines(stack, ways, makes=bool(wanted))
            if wanted and pair is not None:
                self._materials.make(pair, wanted)
            for contestant, config in ways:
                answerer = make_answerer(contestant, config or self._pair.settings, pair, draft)
                self._answer(answerer, trials, contestant, config)

    def measure_speed(self, trials: Sequence[Trial], contestants: Iterable[Contestant]) -> None:
        """Answer each trial alone, the contestants in turn, so that what the machine does meanwhile hits all alike."""
        ways = _ways(contestants, [self._pair.settings])
        names = {(trial, way): f"speed/{key(trial, *way)}" for trial in trials for way in ways}
        if all(name in self.rows for name in names.values()):
            return
        with ExitStack() as stack:
            pair, draft = self._engines(stack, ways, prefix_cache_bytes=0)
            answerers = {way: make_answerer(way[0], self._pair.settings, pair, draft) for way in ways}
            for way in ways:
                with suppress(Exception):  # untimed: the first pass of all takes longer
                    self._outcome(answerers[way], trials[0], way[1])
            for done, trial in enumerate(trials):
                self._report.step("Speed, one request at a time", done, len(trials))
                for way in ways if done % 2 else reversed(ways):
                    if (name := names[trial, way]) not in self.rows:
                        self._try(answerers[way], trial, *way, name, measure="speed")

    def _missing(self, trials: Sequence[Trial], contestant: Contestant, config: SSDConfig | None) -> list[Trial]:
        return [trial for trial in trials if key(trial, contestant, config) not in self.rows]

    def _answer(
        self, answerer: Answerer, trials: Sequence[Trial], contestant: Contestant, config: SSDConfig | None
    ) -> None:
        def answer(trial: Trial) -> None:
            self._try(answerer, trial, contestant, config, key(trial, contestant, config))

        missing = self._missing(trials, contestant, config)
        for _ in answered(answer, missing, self._report, f"Answers of {contestant}", AT_ONCE):
            pass

    def _try(
        self,
        answerer: Answerer,
        trial: Trial,
        contestant: Contestant,
        config: SSDConfig | None,
        name: str,
        measure: str | None = None,
    ) -> None:
        """Answer a trial. Where that fails, its error stands in the journal instead, and the others go on."""
        row: dict[str, Any] = {
            "key": name,
            "trial": trial.name,
            "measure": measure or trial.measure,
            "group": trial.group,
            "source": trial.source,
            "contestant": contestant,
        }
        try:
            row |= self._outcome(answerer, trial, config)
            row["digest"] = answer_digest(row)
        except EngineClosedError:
            raise  # nobody is left to answer the others
        except Exception as error:
            row["error"] = described(error)
        self._journal.append(row)
        self._note(row)

    def _note(self, row: dict[str, Any]) -> None:
        if "error" in row:
            self.failures[row["key"]] = row["error"]
        else:
            self.rows[row["key"]] = row
            self.failures.pop(row["key"], None)

    def _outcome(self, answerer: Answerer, trial: Trial, config: SSDConfig | None) -> dict[str, Any]:
        messages = trial.messages(lambda material: self._materials[material].text)
        given = self._materials[trial.given] if trial.given else Made(text="")
        params = GenerationParams(max_new_tokens=trial.max_new_tokens, continue_final_message=trial.is_begun)
        attempt = answerer.answer(messages, params)
        trace = attempt.trace
        return {
            "goal": trial.goal,
            "given": given.text[-_MOST_GIVEN:],
            "given_tokens": given.tokens,
            "own_tokens": given.own_tokens,
            "config": None if config is None else config.model_dump(exclude={"draft_system_prompt"}),
            "text": attempt.text,
            "token_ids": attempt.token_ids,
            "has_ended": attempt.has_ended,
            "cost": vars(attempt.cost),
            "rounds": trace.rounds,
            "seconds": round(attempt.seconds, 4),
            "match_ratios": trace.match_ratios,
            "thresholds": trace.thresholds,
            "risk_scores": [round(score, 4) for score in trace.risk_scores],
            "beginning_scores": [round(score, 4) for score in trace.beginning_scores],
            "alarms": [vars(alarm) for alarm in trace.alarms],
            "first_union": next((i for i, scheme in enumerate(trace.schemes) if scheme is Scheme.UNION), None),
        }

    def _engines(
        self, stack: ExitStack, ways: Sequence[Way], *, makes: bool = False, **options: Any
    ) -> tuple[SSDEngine | None, SSDEngine | None]:
        """The pair's engine and one of the draft alone, where a contestant needs them; they close with `stack`."""
        needs_pair = makes or any(contestant != "draft" for contestant, _ in ways)
        needs_draft = any(contestant in DRAFT_ALONE for contestant, _ in ways)
        self._report.step("Loading the models", 0, 0)
        pair = stack.enter_context(self._engine(**options)) if needs_pair else None
        return pair, stack.enter_context(self._draft_engine(**options)) if needs_draft else None

    @contextmanager
    def _engine(self, **options: Any) -> Iterator[SSDEngine]:
        with SSDEngine.from_spec(self._pair.replaced(max_batch_size=AT_ONCE, **options)) as engine:
            yield engine

    @contextmanager
    def _draft_engine(self, **options: Any) -> Iterator[SSDEngine]:
        """The draft in both places: alone, it is its own target."""
        from ssd_engine.models.checkpoints import LoadOptions, load_model, load_tokenizer

        pair = self._pair
        with ThreadPoolExecutor(1) as loading:  # as an engine does, for the speed of passes
            draft = loading.submit(load_model, str(pair.draft), LoadOptions.of(pair)[1], pair.draft_adapter).result()
        tokenizer = load_tokenizer(str(pair.draft), pair.draft_revision)
        with SSDEngine(draft, draft, tokenizer, max_batch_size=AT_ONCE, **options) as engine:
            yield engine


def described(error: Exception) -> str:
    """An error's kind and message, in a line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def key(trial: Trial, contestant: Contestant, config: SSDConfig | None) -> str:
    """What tells one answer from all others of an evaluation."""
    if contestant != "ssd" or config is None:
        return f"{trial.name}/{contestant}"
    signals = "" if config.signals is None else f"/{config.signals.described}"
    return f"{trial.name}/ssd/{config.alpha_union}/{config.match_threshold}/{config.bin_size}{signals}"


def _ways(contestants: Iterable[Contestant], configs: Sequence[SSDConfig]) -> list[Way]:
    ways: list[Way] = []
    for contestant in contestants:
        ways += [(contestant, config) for config in configs] if contestant == "ssd" else [(contestant, None)]
    return ways
