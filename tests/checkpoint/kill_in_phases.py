"""Kills one process inside each phase of a save: `kill_in_phases.py FOLDER PHASE...`.

Modules are loaded once; each phase gets a forked process, which saves steps 1 and 2 well and dies
by SIGKILL inside step 3.
"""

import os
import pathlib
import signal
import sys

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from ptjax.checkpoint import Checkpoints

assert ocp.__version__


def state_at(step: int) -> dict[str, jax.Array]:
    return {"w": jnp.arange(1000.0) * step, "step": jnp.asarray(step, jnp.int32)}


def die_in(folder: pathlib.Path, phase: str) -> None:
    seen: list[str] = []

    def fault(done: str) -> None:
        seen.append(done)
        if seen.count(phase) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints = Checkpoints(folder, fault=fault)
    for step in (1, 2, 3):
        checkpoints.save(step, state_at(step), {"step": step}, {})
        checkpoints.wait()


def main() -> None:
    for phase in sys.argv[2:]:
        child = os.fork()
        if child == 0:
            die_in(pathlib.Path(sys.argv[1]) / phase, phase)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        print(phase, os.WIFSIGNALED(status) and os.WTERMSIG(status))


if __name__ == "__main__":
    main()
