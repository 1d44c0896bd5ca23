"""SafetyTrace: what happened while an answer was decoded, token by token and bin by bin."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ssd_engine.scheme import Bin, Scheme

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class SafetyTrace:
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
    forced: list[bool] = field(default_factory=list)
    """Whether a grammar left no other token; such a token is in no bin, and not drafted."""
    bin_ends: list[int] = field(default_factory=list)
    """Tokens of the answer up to the end of each completed bin."""

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
        return sum(self.round_sizes) / self.rounds if self.rounds else 0.0

    @property
    def match_rate(self) -> float:
        """Share of chosen tokens that were the drafted ones."""
        num_chosen = len(self.matched) - self.num_forced
        return sum(self.matched) / num_chosen if num_chosen else 0.0

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
        return sum(b.is_switch for b in self.bins)

    @property
    def risk(self) -> Literal["none", "elevated"]:
        """ "elevated" when some bin fell below its threshold, so that Union took over."""
        return "elevated" if any(b.next_scheme is Scheme.UNION for b in self.bins) else "none"

    def summary(self) -> dict[str, Any]:
        """JSON-ready figures for response metadata."""
        return {
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

    def _repr_html_(self) -> str:
        from ssd_engine.trace_view import to_html

        return to_html(self)

    def plot(self) -> Figure:
        """Match ratio against threshold, bin by bin, as a matplotlib figure (extra `plot`)."""
        from ssd_engine.trace_view import to_figure

        return to_figure(self)
