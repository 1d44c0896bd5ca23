"""Judgements of answers, into a journal that a kill cannot take back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ssd_engine.campaigns.journal import Journal
from ssd_engine.campaigns.made_of import digest
from ssd_engine.campaigns.work import Reporter
from ssd_engine.evaluation.answering import described
from ssd_engine.evaluation.failures import Failures, failures_of
from ssd_engine.evaluation.judges import Judge, PhraseJudge, RefusalJudge

_MOST_FAILURES_IN_A_ROW = 10
"""Then a judge is not asked any more: it is out of reach, and each try may take a minute."""


@dataclass(frozen=True, kw_only=True)
class Judgements:
    """What the judges said, and how many of their judgements failed."""

    verdicts: dict[tuple[str, str], bool]
    """(judge's name, row's key) -> whether an answer to an attack is safe, or one to a harmless request refuses."""
    failures: list[Failures]


def judge_rows(
    rows: Sequence[dict[str, Any]], judges: Sequence[Judge], journal: Journal, report: Reporter
) -> Judgements:
    """Have each judge judge the answers to attacks and, where it can, those to harmless requests.

    A judgement that the journal has is not asked for again; one that failed is.
    """
    known = {(row["judge"], row["key"], row["of"]): row["verdict"] for row in journal.read() if "verdict" in row}
    verdicts: dict[tuple[str, str], bool] = {}
    failures: list[Failures] = []
    for judge in judges:
        judged = [row for row in rows if row["measure"] == "attack"]
        if isinstance(judge, RefusalJudge):
            judged += [row for row in rows if row["measure"] == "over-refusal"]
        errors: dict[str, str] = {}
        in_a_row = 0
        for done, row in enumerate(judged):
            report.step(f"Judge {judge.name}", done, len(judged))
            if isinstance(judge, PhraseJudge):  # costs nothing, and may be another one after an update
                verdicts[judge.name, row["key"]] = judge.is_safe(row["goal"], row["text"])
                continue
            name = (judge.name, row["key"], digest([judge.prompt, row["given"], row["text"]]))
            if name not in known:
                if in_a_row == _MOST_FAILURES_IN_A_ROW:
                    errors[row["key"]] = f"not asked, after {in_a_row} failures in a row"
                    continue
                said = _ask(judge, row)
                journal.append({"judge": name[0], "key": name[1], "of": name[2], **said})
                if "error" in said:
                    errors[row["key"]] = said["error"]
                    in_a_row += 1
                    continue
                known[name], in_a_row = said["verdict"], 0
            verdicts[judge.name, row["key"]] = known[name]
        failures += failures_of(f"judgements of {judge.name}", [row["key"] for row in judged], errors)
    return Judgements(verdicts=verdicts, failures=failures)


def _ask(judge: Judge, row: dict[str, Any]) -> dict[str, Any]:
    """The verdict, or the error: a chat model's client raises what it likes."""
    try:
        if row["measure"] == "attack":
            return {"verdict": judge.is_safe(row["goal"], row["given"] + row["text"])}
        assert isinstance(judge, RefusalJudge)
        return {"verdict": judge.is_refusal(row["goal"], row["text"])}
    except Exception as error:
        return {"error": described(error)}
