"""Draws how the rewards of a run with rollouts went, from its metrics.

    python -m benchmarks.curve runs/sums/metrics.jsonl docs/images/grpo_sums.svg --held_out=1000

Dots are a step's sampled answers, the thick line their mean over five steps; squares are held-out
prompts answered greedily, with Wilson's intervals of 95% as if a reward were 0 or 1.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.intervals import wilson

SAMPLED, GREEDY = "rollout/reward", "eval/rollout/reward"


def points(rows: Sequence[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps that measured something, and what."""
    found = [(row["step"], row[name]) for row in rows if name in row]
    return np.array([step for step, _ in found]), np.array([value for _, value in found])


def draw(rows: Sequence[dict[str, Any]], held_out: int, path: Path) -> None:
    """The picture, as SVG that is the same for the same metrics."""
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = path.name
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.0), layout="constrained")
    steps, sampled = points(rows, SAMPLED)
    axes.plot(steps, sampled, ".", color="#9bb8d3", label="sampled, a step")
    smooth = [sampled[max(0, i - 2) : i + 3].mean() for i in range(len(sampled))]
    axes.plot(steps, smooth, color="#1f77b4", linewidth=2, label="sampled, five steps")
    steps, greedy = points(rows, GREEDY)
    low, high = np.array([wilson(round(mean * held_out), held_out) for mean in greedy]).T
    axes.errorbar(
        *(steps, greedy),
        yerr=[greedy - low, high - greedy],
        fmt="s-",
        color="#d62728",
        capsize=4,
        label=f"{held_out:,} held out, greedily",
    )
    axes.set(xlabel="step", ylabel="mean reward", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def main() -> None:
    """Reads metrics.jsonl, writes the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("metrics", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--held_out", type=int, required=True, help="prompts that were held out")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.metrics.read_text().splitlines()]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw(rows, args.held_out, args.out)


if __name__ == "__main__":
    main()
