import json
import pathlib

import jax.numpy as jnp
import numpy as np

from ptjax.checkpoint import Checkpoints
from tests.two import told_by

SCRIPT = pathlib.Path(__file__).with_name("one_of_two.py")


def test_two_processes_agree_and_one_can_read_it(tmp_path):
    told = told_by(SCRIPT, tmp_path)
    seen = [json.loads(out.splitlines()[-1]) for out in told]
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
