"""The host's time in a step: the median and the 90th percentile of `host_ms` over a run.

    python -m benchmarks.host_time --steps=200
    python -m benchmarks.host_time --steps=200 --model=tiny

A step's `host_ms` has in it: to pull a batch (with `data.workers` 0 also to encode and collate it)
and place it on the devices, to dispatch the stages and the step's program, and to write and show
the numbers of the step before. It has not: waiting for the devices, evaluation, samples, saving;
but stages are in it with all that they wait for. Every step is logged here, and those that compiled
a program are left out.

By default the run is the quickstart's, with its model and its data. `--model=tiny` trains two
layers of random weights instead, whose programs are dispatched as those of a large model.
"""

import argparse
import contextlib
import logging
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from ptjax import loop
from ptjax.config import load
from ptjax.metrics import read_rows
from tests import tiny

ALONE = {
    "data.validation": None,
    "samples.prompts": [],
    "checkpoint.every": 0,
    "eval.every": 0,
    "log.every": 1,
}
"""Nothing between the steps; the last step is saved."""


class Compilations(logging.Handler):
    """The steps that compiled a program: the first, and those of which the run says so."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.steps = {1}

    def emit(self, record: logging.LogRecord) -> None:
        """Notes a step."""
        if str(record.msg).startswith("step %d: compiled program"):
            self.steps.add(record.args[0])


def measure(config: Any, workdir: Path) -> list[float]:
    """Trains; the milliseconds of every logged step that compiled nothing."""
    log, compilations = logging.getLogger("ptjax"), Compilations()
    level = log.level
    log.addHandler(compilations)
    log.setLevel(logging.INFO)
    try:
        loop.train(config, str(workdir))
    finally:
        log.removeHandler(compilations)
        log.setLevel(level)
    rows = [row for row in read_rows(workdir) if "host_ms" in row]
    return [row["host_ms"] for row in rows if row["step"] not in compilations.steps]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/quickstart.py", help="FILE.py[:ARG]")
    parser.add_argument("--model", help="a source in the place of the config's, or tiny")
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(sys.stderr):
        folder, changes = Path(name), ALONE | {"steps": args.steps, "epochs": None}
        if args.model == "tiny":
            model = tiny.write_model(folder / "model", max_position_embeddings=4096)
            changes["model.source"] = str(model)
        elif args.model:
            changes["model.source"] = args.model
        found = measure(load(args.config, changes), folder / "run")
    p90 = statistics.quantiles(found, n=10)[-1]
    print(
        f"host_ms of {len(found)} of {args.steps} steps: median {statistics.median(found):.2f}, "
        f"p90 {p90:.2f}; {args.steps - len(found)} steps that compiled are left out"
    )


if __name__ == "__main__":
    main()
