"""From a named pair to what a loader reads."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path

from ssd_engine.errors import ModelLoadError
from ssd_engine.models.cache import converted_folder
from ssd_engine.models.convert import converting, ensure_converted, is_converted
from ssd_engine.models.hub import download_repository, downloaded_repository, is_repository
from ssd_engine.models.pair import PairSpec
from ssd_engine.models.presets import GGUFSource, HubSource, ModelSource, Preset
from ssd_engine.models.progress import Stage, tqdm_stage

_IN_SETTINGS = ("num_draft_tokens", "draft_system_prompt", "signals")
"""Fields of a spec that its settings take in."""


def resolve(source: ModelSource, stage: Stage = tqdm_stage) -> str:
    """The folder that a model is loaded from; on first use it is fetched. Raises `ModelLoadError`."""
    if isinstance(source, GGUFSource):
        return str(ensure_converted(source, stage))
    if isinstance(source, HubSource):
        commit = source.repo, source.revision
        return str(downloaded_repository(*commit) or download_repository(*commit, stage))
    return str(source)


def resolve_pair(preset: Preset, stage: Stage = tqdm_stage) -> tuple[str, str]:
    """`resolve` for target and draft; on first use, one is converted while the other is fetched."""
    with ExitStack() as conversions:
        for source in (preset.draft, preset.target):
            if isinstance(source, GGUFSource):
                conversions.enter_context(converting(source, stage))
    return resolve(preset.target, stage), resolve(preset.draft, stage)


def pull_pair(preset: Preset, stage: Stage = tqdm_stage) -> tuple[Path, Path]:
    """Bring target and draft to this machine, ready to load, and return their folders. Raises `ModelLoadError`."""
    target, draft = resolve_pair(preset, stage)
    return Path(target), Path(draft)


def local_folder(source: ModelSource) -> Path | None:
    """Where the model lies ready to load; None when it has still to be pulled."""
    if isinstance(source, GGUFSource):
        return converted_folder(source) if is_converted(source) else None
    return downloaded_repository(source.repo, source.revision) if isinstance(source, HubSource) else source


def fetch_named(spec: PairSpec, stage: Stage = tqdm_stage) -> None:
    """Bring models that are named by their hub ids into the hub's cache.

    Where that fails nothing is raised: what can be loaded is for the loader to say.
    """
    for source, revision in ((spec.target, spec.target_revision), (spec.draft, spec.draft_revision)):
        if source is not None and is_repository(source) and downloaded_repository(source, revision) is None:
            with suppress(ModelLoadError):
                download_repository(source, revision, stage)


def resolve_spec(spec: PairSpec, stage: Stage = tqdm_stage) -> PairSpec:
    """The same pair by its sources, adapter and settings instead of a preset's name; its weights are fetched.

    Raises:
        ModelLoadError: there is no such preset, or its weights cannot be had.
    """
    given: dict[str, object] = {"name": spec.title, "config": spec.settings, **dict.fromkeys(_IN_SETTINGS)}
    preset, safe_draft = spec.named_preset, spec.safe_draft
    if preset is not None:
        given |= dict(zip(("target", "draft"), resolve_pair(preset, stage), strict=True), preset=None)
    elif safe_draft is not None:
        given |= {"draft": resolve(safe_draft.source, stage)}
    if safe_draft is not None:
        given |= {"draft_adapter": spec.draft_adapter or safe_draft.adapter}
    if spec.backend != "vllm":
        given |= dict(zip(("target_quantization", "draft_quantization"), spec.quantizations, strict=True))
    return spec.replaced(**given)
