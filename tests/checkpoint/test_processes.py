import json
import os
import pathlib
import socket
import subprocess
import sys

import jax.numpy as jnp
import numpy as np

from ptjax.checkpoint import Checkpoints
from tests import xla

SCRIPT = pathlib.Path(__file__).with_name("one_of_two.py")


def test_two_processes_agree_and_one_can_read_it(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, "XLA_FLAGS": xla.flags()}
    both = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), port, str(index), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for index in range(2)
    ]
    try:
        told = [process.communicate(timeout=90) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], told
    seen = [json.loads(out.splitlines()[-1]) for out, _ in told]
    assert seen[0] == seen[1]
    first = seen[0]
    assert first["first"] is None
    assert first["error"] == (
        "checkpoint of step 2 failed: OSError: the cable is out; the last good step is 1"
    )
    assert (first["restored"], first["same"]) == (1, True)
    assert first["latest"] == first["stopped"] < 499
    restored = Checkpoints(tmp_path).restore({"w": jnp.zeros((8, 4)), "n": jnp.int32(0)})
    step = first["stopped"]
    assert (restored.step, restored.host) == (step, {"n": step})
    want = np.arange(32, dtype=np.float32).reshape(8, 4) + step
    assert (np.asarray(restored.state["w"]) == want).all()
