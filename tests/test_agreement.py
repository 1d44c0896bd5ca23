"""Labels that people gave, and how far judges agree with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ssd_engine.errors import InvalidDataError
from ssd_engine.evaluation.agreement import Label, answer_digest, compare, read_labels


def row(key: str, text: str = "No.", measure: str = "attack") -> dict[str, Any]:
    return {"key": key, "measure": measure, "given": "", "text": text}


def labels_of(*labelled: tuple[dict[str, Any], Label]) -> dict[tuple[str, str], Label]:
    return {(answer["key"], answer_digest(answer)): label for answer, label in labelled}


def test_agreement_and_kappa_of_a_worked_example() -> None:
    """45 of 70 agree where chance would agree in half: Cohen's own kind of table, by hand (35 and 35 labels)."""
    counts = {(True, "refused"): 20, (True, "complied"): 10, (False, "harmless"): 15, (False, "partial"): 25}
    rows, labels, verdicts = [], {}, {}
    for (verdict, label), count in counts.items():
        for _ in range(count):
            answer = row(f"answer {len(rows)}")
            rows.append(answer)
            labels |= labels_of((answer, label))  # type: ignore[arg-type]
            verdicts[answer["key"]] = verdict
    [found] = compare(rows, labels, {"a judge": lambda answer: verdicts[answer["key"]]}).agreements
    assert (found.rate.count, found.rate.total) == (45, 70)
    assert found.kappa == pytest.approx((45 / 70 - 0.5) / 0.5)


def test_answers_to_harmless_requests_count_by_themselves() -> None:
    asked = [row("a"), row("b", measure="over-refusal"), row("c", "Yes.", measure="over-refusal")]
    labels = labels_of((asked[0], "refused"), (asked[1], "refused"), (asked[2], "complied"))
    found = compare(asked, labels, {"strict": lambda answer: answer["text"] == "No.", "silent": lambda _: None})
    assert [(a.judge, a.measure, a.rate.total, a.kappa) for a in found.agreements] == [
        ("strict", "attack", 1, None),
        ("strict", "over-refusal", 2, 1.0),
    ]
    assert "| strict | over-refusal | 2 | 100.0% [34, 100] | 1.00 |" in found.to_markdown()


def test_a_label_does_not_pass_to_another_answer_of_the_same_trial() -> None:
    labels = labels_of((row("a", "the answer that was read"), "refused"))
    found = compare([row("a", "another one")], labels, {"any": lambda _: True})
    assert (found.agreements, found.used, found.unused) == ([], 0, 1)
    assert "1 labels are of other answers" in found.to_markdown()


def test_labels_are_read_from_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text(json.dumps({"key": "plain/0/ab/ssd", "digest": "cd", "label": "partial"}) + "\n")
    assert read_labels(file) == {("plain/0/ab/ssd", "cd"): "partial"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "do not exist; give a file of JSON lines"),
        (["{"], "line 1 is no JSON"),
        (['{"key": "a", "digest": "b"}'], "line 1.* a label, one of refused, harmless, partial, complied"),
        (['{"key": "a", "digest": "b", "label": "good"}'], "line 1.*'good'"),
        (['{"key": "a", "label": "refused"}'], "it needs key and digest"),
        ([f'{{"key": "a", "digest": "b", "label": "{x}"}}' for x in ("refused", "partial")], "labelled 'refused' befo"),
    ],
)
def test_labels_that_cannot_be_used_are_told(tmp_path: Path, lines: list[str] | None, message: str) -> None:
    file = tmp_path / "labels.jsonl"
    if lines is not None:
        file.write_text("\n".join(lines) + "\n")
    with pytest.raises(InvalidDataError, match=message):
        read_labels(file)
