"""Trains: config -> model and data -> loop -> checkpoint and summary.

python -m ptjax.train --config=configs/sft.py --workdir=runs/sft --config.steps=100
"""

import logging
import signal
import sys
from typing import Any

from ptjax.checkpoint.steps import check_workdir
from ptjax.config import Config, Flag, parse
from ptjax.errors import UserError
from ptjax.errors import run as run_command
from ptjax.hosts.joining import Places, joined
from ptjax.programs import keep_programs

FLAGS = (
    Flag("workdir", "folder or gs:// path of the run; a run already there is resumed"),
    Flag("dry_run", "everything up to the first compiled step, then stop", type=bool),
    Flag(
        "distributed",
        "several hosts that a TPU slice, SLURM, Open MPI or Kubernetes made known",
        type=bool,
    ),
    Flag("coordinator", "host:port of process 0, where nothing made the hosts known"),
    Flag("process", "this process's number", type=int),
    Flag("processes", "how many processes there are", type=int),
)


def train(config: Config, workdir: str, *, quiet: bool = False) -> Any:
    """Trains what a config says, from where the workdir stands; see `ptjax.loop.train`."""
    from ptjax.loop import train

    return train(config, workdir, quiet=quiet)


def main() -> None:
    """The command. Nothing heavy is imported before its arguments are known to be good."""
    config, options = parse(
        prog="python -m ptjax.train",
        flags=FLAGS,
        description="Post-trains a language model.",
        example="python -m ptjax.train --config=configs/quickstart.py --workdir=runs/quickstart",
    )
    if not options.workdir and not options.dry_run:
        raise UserError("missing --workdir=FOLDER, where checkpoints and metrics go")
    if options.workdir:
        check_workdir(options.workdir)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("ptjax").setLevel(logging.INFO)
    for name in ("absl", "asyncio"):  # Orbax's errors are raised, and told by us
        logging.getLogger(name).setLevel(logging.CRITICAL)
    keep_programs()
    places = Places(options.coordinator, options.processes, options.process)
    with joined(places, by_cluster=options.distributed):
        _run(config, options)


def _run(config: Config, options: Any) -> None:
    if options.dry_run:
        from ptjax.dry_run import report

        print(report(config, options.workdir))
        return
    result = train(config, options.workdir)
    if result.stopped_by == signal.SIGINT:  # what stands behind `&&` is not meant any more
        sys.exit(130)


if __name__ == "__main__":
    run_command(main)
