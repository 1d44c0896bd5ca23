"""Speculative Safety-Aware Decoding: a small safe model drafts, a large one verifies, both decide."""

from importlib.metadata import version as _version

from ssd_engine.answers.result import GenerationResult, Piece, Usage
from ssd_engine.config import GenerationParams, Grammar, SignalConfig, SSDConfig
from ssd_engine.pair_engine import SSDEngine
from ssd_engine.rule.draft_signals import DraftSignals
from ssd_engine.rule.scheme import Scheme
from ssd_engine.trace.safety_trace import SafetyTrace

__all__ = [
    "DraftSignals",
    "GenerationParams",
    "GenerationResult",
    "Grammar",
    "Piece",
    "SSDConfig",
    "SSDEngine",
    "SafetyTrace",
    "Scheme",
    "SignalConfig",
    "Usage",
    "__version__",
]

__version__ = _version("ssd-integrations")
