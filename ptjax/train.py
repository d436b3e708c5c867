"""Trains: config -> model and data -> loop -> checkpoint and summary.

python -m ptjax.train --config=configs/sft.py --workdir=runs/sft --config.steps=100
"""

import logging
from typing import Any

from ptjax.config import Config, Flag, parse
from ptjax.errors import UserError
from ptjax.errors import run as run_command

FLAGS = (
    Flag("workdir", "folder or gs:// path of the run; a run already there is resumed"),
    Flag("dry_run", "everything up to the first compiled step, then stop", type=bool),
    Flag("coordinator", "host:port of process 0, where a run has several processes"),
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
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("ptjax").setLevel(logging.INFO)
    for name in ("absl", "asyncio"):  # Orbax's errors are raised, and told by us
        logging.getLogger(name).setLevel(logging.CRITICAL)
    _start_jax(options)
    if options.dry_run:
        from ptjax.dry_run import report

        print(report(config))
        return
    train(config, options.workdir)


def _start_jax(options: Any) -> None:
    """Joins the other processes, and keeps compiled programs for the next start."""
    import jax

    from ptjax.programs import keep_programs

    given = [options.coordinator, options.process, options.processes]
    if any(value is not None for value in given):
        if any(value is None for value in given):
            raise UserError("--coordinator, --process and --processes go together")
        jax.distributed.initialize(options.coordinator, options.processes, options.process)
    keep_programs()


if __name__ == "__main__":
    run_command(main)
