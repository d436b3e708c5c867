"""A script of the tests in two processes, each with a device of its own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests import xla


def told_by_two(script: Path, *args: object) -> list[str]:
    """What each printed; both end well. A process is given a free port, its number, and `args`."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    root = str(Path(__file__).parents[1])
    both = [
        subprocess.Popen(
            [sys.executable, str(script), port, str(index), *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XLA_FLAGS": xla.flags(), "PYTHONPATH": root},
        )
        for index in range(2)
    ]
    try:
        told = [process.communicate(timeout=120) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], told
    return [out for out, _ in told]
