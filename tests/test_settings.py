"""Settings: a copy is checked as a new object is, however it is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ssd_engine import GenerationParams, SSDConfig
from ssd_engine.alignment.settings import AlignSettings
from ssd_engine.config import Grammar, Settings
from ssd_engine.errors import InvalidRequestError
from ssd_engine.evaluation.settings import EvalSettings
from ssd_engine.models.pair import PairSpec

Copier = Callable[..., Settings]
COPIERS: list[Copier] = [
    lambda settings, **changes: settings.replaced(**changes),
    lambda settings, **changes: settings.model_copy(update=changes),
    lambda settings, **changes: settings.model_copy(update=changes, deep=True),
]


@pytest.mark.parametrize("copied", COPIERS)
@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        (SSDConfig(), {"num_draft_tokens": False}, "num_draft_tokens=False"),
        (SSDConfig(), {"num_draft_tokens": 65}, "num_draft_tokens=65"),
        (SSDConfig(), {"bin_size": 0}, "bin_size=0"),
        (GenerationParams(), {"max_new_tokens": 0}, "max_new_tokens=0"),
        (GenerationParams(), {"stop": ""}, "an empty stop string"),
        (GenerationParams(), {"max_tokens": 5}, "max_tokens=5"),
        (Grammar(regex="a"), {"lark": "start: /b/"}, "give one of json_schema, regex and lark"),
        (EvalSettings(), {"limit": 0}, "limit=0"),
        (AlignSettings(), {"epochs": 0}, "epochs=0"),
        (PairSpec(), {"max_batch_size": 0}, "max_batch_size=0"),
    ],
)
def test_a_copy_with_an_unusable_value_is_refused(
    copied: Copier, settings: Settings, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        copied(settings, **change)


@pytest.mark.parametrize("copied", COPIERS)
def test_a_copy_has_the_new_values_as_a_new_object_would_and_keeps_the_others(copied: Copier) -> None:
    params = GenerationParams(max_new_tokens=7, stop="a", on_risk=print, ssd=SSDConfig(bin_size=3))
    other = copied(params, stop="b", tool_choice=True)
    assert other == GenerationParams(
        max_new_tokens=7, stop=("b",), on_risk=print, ssd=SSDConfig(bin_size=3), tool_choice="any"
    )
    assert other.model_fields_set == {"max_new_tokens", "stop", "on_risk", "ssd", "tool_choice"}
    assert params.stop == ("a",), "the original is as it was"


@pytest.mark.parametrize(
    ("kind", "name"),
    [(SSDConfig, "num_draft_tokens"), (SSDConfig, "alpha_union"), (GenerationParams, "seed"), (EvalSettings, "limit")],
)
def test_a_truth_value_is_no_number(kind: type[Settings], name: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"{name}=True: give a number"):
        kind(**{name: True})


def test_options_of_one_type_cannot_change_places() -> None:
    with pytest.raises(TypeError, match="positional"):
        PairSpec("qwen2.5-coder-1.5b")  # type: ignore[misc]
