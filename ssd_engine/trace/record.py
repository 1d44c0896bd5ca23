"""TraceRecord: what happened while an answer was decoded, token by token and bin by bin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from ssd_engine.config import Signal
from ssd_engine.rule.scheme import Bin, Scheme
from ssd_engine.rule.signals import Alarm, Look


@dataclass
class TraceRecord:
    """The record of one answer. Lists with one entry a token run parallel to `GenerationResult.token_ids`."""

    decoding: str = "ssd"
    schemes: list[Scheme] = field(default_factory=list)
    """Scheme that each token was chosen under."""
    matched: list[bool] = field(default_factory=list)
    """Whether each token was the drafted one."""
    texts: list[str] = field(default_factory=list)
    """What each token added to the text; a character of several tokens stands with its last one."""
    bins: list[Bin] = field(default_factory=list)
    """Completed match-ratio bins."""
    bin_size: int = 7
    """Chosen tokens in one bin."""
    round_sizes: list[int] = field(default_factory=list)
    """Tokens that each round added."""
    num_drafted: int | None = None
    """Tokens that were drafted, those that were not accepted included; None where the backend (vLLM) does not tell."""
    forced: list[bool] = field(default_factory=list)
    """Whether a grammar left no other token; such a token is in no bin, and not drafted."""
    bin_ends: list[int] = field(default_factory=list)
    """Tokens of the answer up to the end of each completed bin."""
    signal_thresholds: dict[Signal, float] = field(default_factory=dict)
    """Of each signal that is used; empty where the match ratio alone decides, and then so are the next four."""
    signal_scores: dict[Signal, list[float]] = field(default_factory=dict)
    """What each signal gave before each token was chosen, in [0, 1]; 0 at forced tokens."""
    risk_scores: list[float] = field(default_factory=list)
    """The highest of the signals' scores, for each token."""
    beginning_scores: list[float] = field(default_factory=list)
    """The same at the places of a given beginning."""
    bridge_mass: list[float] = field(default_factory=list)
    """The draft's probability of tokens that the target's vocabulary lacks, before each token was chosen; 0 at forced
    tokens. Empty where the models have one vocabulary, and under a lossless rule without a draft."""
    alarms: list[Alarm] = field(default_factory=list)
    """Where signals began to ask for Union, and which."""

    def begin(self, looks: Sequence[Look]) -> None:
        """Enter what the signals said over a given beginning."""
        for place, look in enumerate(looks, -len(looks)):
            self.beginning_scores.append(look.risk)
            self._enter_alarms(place, look)

    def look(self, look: Look | None) -> None:
        """Enter what the signals said of the next token; None: it is forced. For nothing where none is used."""
        if not self.signal_thresholds:
            return
        if look is not None:
            self._enter_alarms(len(self.risk_scores), look)
        self.risk_scores.append(0.0 if look is None else look.risk)
        for name in self.signal_thresholds:
            score = 0.0 if look is None else look.scores.get(name, 0.0)
            self.signal_scores.setdefault(name, []).append(score)

    def _enter_alarms(self, place: int, look: Look) -> None:
        for name in look.raised:
            threshold = self.signal_thresholds[name]
            self.alarms.append(Alarm(place=place, signal=name, score=look.scores[name], threshold=threshold))

    @property
    def match_ratios(self) -> list[float]:
        """Match ratio of each completed bin."""
        return [b.ratio for b in self.bins]

    @property
    def thresholds(self) -> list[float]:
        """Threshold that each completed bin was compared with."""
        return [b.threshold for b in self.bins]

    @property
    def rounds(self) -> int:
        """Draft-and-verify rounds."""
        return len(self.round_sizes)

    @property
    def tokens_per_round(self) -> float:
        """Tokens that a round added, on average."""
        return sum(self.round_sizes) / self.rounds if self.rounds else 0.0

    @property
    def num_accepted(self) -> int:
        """Tokens of the answer that are the drafted ones."""
        return sum(self.matched)

    @property
    def match_rate(self) -> float:
        """Share of chosen tokens that were the drafted ones."""
        num_chosen = len(self.matched) - self.num_forced
        return self.num_accepted / num_chosen if num_chosen else 0.0

    @property
    def num_forced(self) -> int:
        """Tokens that a grammar forced."""
        return sum(self.forced)

    @property
    def union_share(self) -> float:
        """Share of tokens that were chosen under Union."""
        return self.schemes.count(Scheme.UNION) / len(self.schemes) if self.schemes else 0.0

    @property
    def switches(self) -> int:
        """Changes of scheme."""
        if self.signal_thresholds:
            return sum(before is not after for before, after in pairwise((Scheme.INTERSECTION, *self.schemes)))
        return sum(b.is_switch for b in self.bins)

    @property
    def risk(self) -> Literal["none", "elevated"]:
        """Whether some bin fell below its threshold, or a signal was past its own, so that Union took over."""
        is_elevated = self.alarms or any(b.next_scheme is Scheme.UNION for b in self.bins)
        return "elevated" if is_elevated else "none"

    @property
    def max_risk(self) -> float:
        """The highest score of a signal, a given beginning included; 0 where none is used."""
        return max((*self.beginning_scores, *self.risk_scores), default=0.0)

    def summary(self) -> dict[str, Any]:
        """JSON-ready figures for response metadata."""
        figures: dict[str, Any] = {
            "decoding": self.decoding,
            "risk": self.risk,
            "match_rate": round(self.match_rate, 4),
            "match_ratios": [round(b.ratio, 4) for b in self.bins],
            "thresholds": [round(b.threshold, 4) for b in self.bins],
            "union_share": round(self.union_share, 4),
            "switches": self.switches,
            "rounds": self.rounds,
            "tokens_per_round": round(self.tokens_per_round, 4),
            "forced_tokens": self.num_forced,
        }
        if self.signal_thresholds:
            figures |= {"alarms": len(self.alarms), "max_risk": round(self.max_risk, 4)}
        if self.bridge_mass:
            figures["bridge_mass"] = round(sum(self.bridge_mass) / len(self.bridge_mass), 4)
        return figures
