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
      rows: made.
      skipped: why a row was not made, and how often.
      dropped: why an answer stands in no row, and how often.
      scores: sums over the rows that have scores, by what is scored.
      scored: rows that have scores.
    """

    prompts: int = 0
    answers: int = 0
    rows: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    scored: int = 0

    @staticmethod
    def of(kept: Mapping[str, Any]) -> "Totals":
        """From what `to_dict` gave."""
        return Totals(**kept)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def add(self, scores: Mapping[str, float] | None) -> None:
        """One more row, of these scores."""
        self.rows += 1
        if scores is not None:
            self.scored += 1
            for name, value in scores.items():
                self.scores[name] = self.scores.get(name, 0.0) + value

    def skip(self, reason: str, times: int = 1) -> None:
        """No row, for this reason."""
        _count(self.skipped, reason, times)

    def drop(self, reason: str, times: int = 1) -> None:
        """An answer that stands in no row, for this reason."""
        _count(self.dropped, reason, times)

    def reasons(self) -> str:
        """`3 x identical sides, 1 x unfinished`."""
        return _listed({**self.dropped, **self.skipped}) or "there are no prompts"

    def lines(self, what: str) -> list[str]:
        """The summary, for people; `what` the rows are."""
        lines = [f"{what:<11} {self.rows} of {self.prompts} prompts, {self.answers} answers"]
        if self.skipped:
            lines.append(f"skipped     {_listed(self.skipped)}")
        if self.dropped:
            lines.append(f"left out    of the answers: {_listed(self.dropped)}")
        if self.scored:
            means = (f"{name} {total / self.scored:.3f}" for name, total in self.scores.items())
            lines.append(f"mean score  {', '.join(means)}")
        return lines


def _count(into: dict[str, int], reason: str, times: int) -> None:
    if times:
        into[reason] = into.get(reason, 0) + times


def _listed(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{times} x {reason}" for reason, times in ordered)
