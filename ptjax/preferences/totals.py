"""What became of the prompts: counts and means, kept through kills."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Totals:
    """Counts of a run.

    Attributes:
      prompts: read so far.
      answers: sampled.
      pairs: made.
      skipped: why a pair was not made, and how often.
      dropped: why an answer stands in no pair, and how often.
      score_chosen: sum over the pairs that have scores.
      score_rejected: likewise.
      scored: pairs that have scores.
    """

    prompts: int = 0
    answers: int = 0
    pairs: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    score_chosen: float = 0.0
    score_rejected: float = 0.0
    scored: int = 0

    @staticmethod
    def of(kept: Mapping[str, Any]) -> "Totals":
        """From what `to_dict` gave."""
        return Totals(**kept)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def add(self, scores: tuple[float, float] | None) -> None:
        """One more pair, of these scores."""
        self.pairs += 1
        if scores is not None:
            self.scored += 1
            self.score_chosen += scores[0]
            self.score_rejected += scores[1]

    def skip(self, reason: str, times: int = 1) -> None:
        """No pair, for this reason."""
        _count(self.skipped, reason, times)

    def drop(self, reason: str, times: int = 1) -> None:
        """An answer that stands in no pair, for this reason."""
        _count(self.dropped, reason, times)

    def reasons(self) -> str:
        """`3 x identical sides, 1 x unfinished`."""
        return _listed({**self.dropped, **self.skipped}) or "there are no prompts"

    def lines(self) -> list[str]:
        """The summary, for people."""
        lines = [f"pairs       {self.pairs} of {self.prompts} prompts, {self.answers} answers"]
        if self.skipped:
            lines.append(f"skipped     {_listed(self.skipped)}")
        if self.dropped:
            lines.append(f"left out    of the answers: {_listed(self.dropped)}")
        if self.scored:
            chosen, rejected = self.score_chosen / self.scored, self.score_rejected / self.scored
            lines.append(f"mean score  chosen {chosen:.3f}, rejected {rejected:.3f}")
        return lines


def _count(into: dict[str, int], reason: str, times: int) -> None:
    if times:
        into[reason] = into.get(reason, 0) + times


def _listed(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{times} x {reason}" for reason, times in ordered)
