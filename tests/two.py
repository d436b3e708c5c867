"""A script of the tests in several processes, each with a device of its own unless it says more."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests import xla

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def started(script: Path, *args: object, processes: int = 2) -> list[subprocess.Popen[str]]:
    """Each is given a free port, its number, and `args`."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, str(script), str(port), str(index), *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XLA_FLAGS": xla.flags(), "PYTHONPATH": str(ROOT)},
        )
        for index in range(processes)
    ]


def told_by(script: Path, *args: object, processes: int = 2) -> list[str]:
    """What each of `started` printed; all end well."""
    every = started(script, *args, processes=processes)
    try:
        told = [process.communicate(timeout=300) for process in every]
    finally:
        for process in every:
            with process:  # its pipes are closed
                process.kill()
    assert [process.returncode for process in every] == [0] * processes, told
    return [out for out, _ in told]
