"""From a pair's description to the parts of an engine: the one place that knows the backends."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ssd_engine.config import SSDConfig
from ssd_engine.errors import InvalidRequestError, ModelLoadError
from ssd_engine.models.pair import PairSpec
from ssd_engine.models.resolve import resolve_spec
from ssd_engine.rule.draft_signals import DraftSignals

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ssd_engine.backends.transformers.outlook import PairOutlook
    from ssd_engine.serving.parts import EngineParts


def load_parts(spec: PairSpec, signals: DraftSignals | None = None) -> EngineParts:
    """Load a pair with its backend. Arguments and errors are `SSDEngine.from_spec`'s."""
    require_local_packages()
    resolved = resolve_spec(spec)
    if spec.backend == "vllm":
        if signals is not None:
            raise InvalidRequestError("signals: vLLM reads them from the folder of the draft or its adapter; leave out")
        from ssd_engine.backends.vllm.parts import vllm_parts

        return vllm_parts(resolved)
    from ssd_engine.backends.transformers.parts import transformers_parts

    return transformers_parts(resolved, signals)


def parts_of_models(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    draft_tokenizer: PreTrainedTokenizerBase | None,
    *,
    config: SSDConfig | None,
    signals: DraftSignals | None,
    **options: Any,
) -> EngineParts:
    """The parts of an engine on models in memory. Arguments and errors are `SSDEngine`'s."""
    from ssd_engine.backends.transformers import parts

    return parts.parts_of_models(
        target,
        draft,
        tokenizer,
        draft_tokenizer,
        config=config or SSDConfig(),
        signals=signals or DraftSignals(),
        **options,
    )


def pair_outlook(spec: PairSpec, target: PreTrainedConfig, draft: PreTrainedConfig) -> PairOutlook:
    """How the transformers backend would hold a pair; raises `ModelLoadError` where it cannot run it."""
    from ssd_engine.backends.transformers.outlook import PairOutlook

    return PairOutlook.of(spec, target, draft)


def require_local_packages() -> None:
    """Raise `ModelLoadError` without what runs models: a client of a server may have been installed so."""
    missing = [package for package in ("torch", "transformers") if find_spec(package) is None]
    if missing:
        raise ModelLoadError(
            f"a pair in this process needs {' and '.join(missing)}: pip install {' '.join(missing)}; or give base_url, "
            "the address of a server (ssd serve)"
        )
