"""What a pair needs, and whether it can run here, told without its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ssd_engine.answers.tool_formats import detect_format
from ssd_engine.doctor.location import Location, State, locate
from ssd_engine.doctor.safety import DraftSafety, draft_safety
from ssd_engine.doctor.vocabularies import VocabularyMatch
from ssd_engine.errors import SSDError
from ssd_engine.loading import pair_outlook
from ssd_engine.models.checkpoints import load_config, load_tokenizer, refuse_pickled
from ssd_engine.models.memory import available_bytes, require_room, stored_bytes
from ssd_engine.models.pair import PairSpec
from ssd_engine.serving.intake import ModelFacts


@dataclass(kw_only=True)
class ModelNeeds:
    """One model of a pair; None: not known, since it is not here."""

    name: str
    state: State
    path: str | None
    fetched_bytes: int
    """What has still to be downloaded."""
    model_type: str | None = None
    context_length: int | None = None
    has_chat_template: bool | None = None
    tool_format: str | None = None
    """None: the template takes no tools."""
    parameters: int | None = None
    form: str | None = None
    """How its weights would be held."""
    bytes_held: int | None = None
    bytes_read: int | None = None
    """By a forward pass of one token, at least."""


@dataclass(kw_only=True)
class PairNeeds:
    """A pair; None: not known, since a model is not here."""

    title: str
    target: ModelNeeds
    draft: ModelNeeds
    num_draft_tokens: int | str
    safety: DraftSafety | None = None
    shared_tokens: int | None = None
    """Ids of the one vocabulary of both; None: they have two, or it is not known."""
    vocabularies: VocabularyMatch | None = None
    """Of two vocabularies, what they have in common."""
    context_length: int | None = None
    device: str | None = None
    memory_free: int | None = None
    """Bytes on the device."""
    cache_bytes: int | None = None
    """Of the key-value caches that the pair would have here."""
    cache_positions: int | None = None
    problems: list[str] = field(default_factory=list)
    """Why it cannot run here, each with what to do."""


@dataclass(frozen=True)
class _Read:
    """What was read of one model."""

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    facts: ModelFacts


def pair_needs(spec: PairSpec) -> PairNeeds:
    """Look at a pair; raises `ModelLoadError` where there is no preset of that name."""
    places = _locations(spec)
    models = [
        ModelNeeds(name=name, state=place.state, path=place.path, fetched_bytes=place.fetched_bytes)
        for name, place in zip(spec.names, places, strict=True)
    ]
    needs = PairNeeds(
        title=spec.title, target=models[0], draft=models[1], num_draft_tokens=spec.settings.num_draft_tokens
    )
    needs.problems += [place.problem for place in places if place.problem is not None]
    read = [_read(model, needs.problems) for model in models]
    needs.safety = draft_safety(spec, needs.draft.path, read[1].config if read[1] else None, needs.problems)
    if read[0] is not None and read[1] is not None:
        _compare(needs, read[0], read[1])
        with _noted(needs.problems):
            _plan(needs, spec, read[0].config, read[1].config)
    return needs


def _locations(spec: PairSpec) -> list[Location]:
    preset = spec.named_preset
    if preset is not None:
        return [locate(source, None) for source in (preset.target, preset.draft)]
    draft = str(spec.draft) if spec.safe_draft is None else spec.safe_draft.source
    return [locate(str(spec.target), spec.target_revision), locate(draft, spec.draft_revision)]


@contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """What is raised inside is a problem."""
    try:
        yield
    except SSDError as error:
        problems.append(str(error))


def _read(model: ModelNeeds, problems: list[str]) -> _Read | None:
    """Configuration and tokenizer of a model that is here, entered in what is known of it."""
    if model.path is None:
        return None
    with _noted(problems):
        refuse_pickled(Path(model.path))
        if Path(model.path).is_dir() and not stored_bytes(model.path):
            problems.append(f"{model.path!r} holds no *.safetensors; save the model's weights there as safetensors")
        config, tokenizer = load_config(model.path), load_tokenizer(model.path)
        facts = ModelFacts.of(config, tokenizer)
        template = str(tokenizer.chat_template or "")
        model.model_type = config.model_type
        model.context_length = facts.context_length
        model.has_chat_template = bool(template)
        model.tool_format = str(detect_format(template)) if "tools" in template else None
        if not template:
            problems.append(
                f"{model.name} has no chat template, so it cannot read messages (ChatSSD, ssd chat, ssd run); use an "
                "instruct model, or save its tokenizer with a chat template"
            )
        return _Read(config, tokenizer, facts)
    return None


def _compare(needs: PairNeeds, target: _Read, draft: _Read) -> None:
    with _noted(needs.problems):
        needs.vocabularies = VocabularyMatch.of(target.facts, draft.facts)
        if needs.vocabularies is None:
            needs.shared_tokens = min(target.facts.vocabulary_size, draft.facts.vocabulary_size)
    lengths = [length for length in (needs.target.context_length, needs.draft.context_length) if length is not None]
    needs.context_length = min(lengths, default=None)


def _plan(needs: PairNeeds, spec: PairSpec, target: PreTrainedConfig, draft: PreTrainedConfig) -> None:
    """Weights and caches; raises `SSDError` where they do not fit, or the backend cannot run such models."""
    outlook = pair_outlook(spec, target, draft)
    for model, own in ((needs.target, outlook.target), (needs.draft, outlook.draft)):
        model.parameters, model.form = own.parameters, own.form
        model.bytes_held, model.bytes_read = own.bytes_held, own.bytes_read
    needs.device = str(outlook.device)
    needs.memory_free = available_bytes(outlook.device)
    require_room([str(needs.target.path), str(needs.draft.path)], needs.device)
    needs.cache_positions = outlook.positions(needs.context_length)
    needs.cache_bytes = needs.cache_positions * outlook.bytes_per_position
