"""An early look at reward hacking: what is rewarded rises, and what was meant falls."""

from collections.abc import Mapping, Sequence
from typing import Any

REWARD = "rollout/reward"


class RewardWatch:
    """Compares the reward in training with checks on held-out prompts, evaluation by evaluation.

    A check that falls at two evaluations in a row, while the training reward between them rises, is
    told once.
    """

    def __init__(self, monitors: Sequence[str]):
        """Begins a run.

        Args:
          monitors: names of rewards of weight 0, which the policy is not trained on.
        """
        self._checks = [f"eval/reward/{name}" for name in monitors] + [f"eval/{REWARD}"]
        self._sum, self._count = 0.0, 0
        self._before: tuple[float, Mapping[str, float]] | None = None
        self._falls = dict.fromkeys(self._checks, 0)

    def state(self) -> dict[str, Any]:
        """What it remembers, JSON-able."""
        return {
            "sum": self._sum,
            "count": self._count,
            "before": self._before,
            "falls": dict(self._falls),
        }

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state()`."""
        self._sum, self._count = state["sum"], state["count"]
        before = state["before"]
        self._before = None if before is None else (before[0], before[1])
        self._falls |= {name: n for name, n in state["falls"].items() if name in self._falls}

    def trained(self, logged: Mapping[str, float]) -> None:
        """Takes a step's numbers."""
        if REWARD in logged:
            self._sum, self._count = self._sum + logged[REWARD], self._count + 1

    def measured(self, held_out: Mapping[str, float]) -> str | None:
        """Takes held-out numbers; a line for the user where a check falls as the reward rises."""
        if not self._count:
            return None
        now, before = self._sum / self._count, self._before
        checks = {name: held_out[name] for name in self._checks if name in held_out}
        self._sum, self._count, self._before = 0.0, 0, (now, checks)
        if before is None:
            return None
        told = []
        for name in self._checks:
            if name not in held_out or name not in before[1]:
                continue
            falls = now > before[0] and held_out[name] < before[1][name]
            self._falls[name] = self._falls[name] + 1 if falls else 0
            if self._falls[name] == 2:
                told.append(f"{name} fell twice in a row, to {held_out[name]:.3g}")
        if not told:
            return None
        return (
            f"the reward in training rises (now {now:.3g}) while {' and '.join(told)}: look at the "
            "completions for what the reward pays and you did not mean"
        )
