import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.checkpoint import Checkpoints

SCRIPT = pathlib.Path(__file__).with_name("kill_in_phases.py")
AFTER = {  # phase in which step 3's save is killed: the step that is restored
    "copied": 2,
    "arrays-written": 2,
    "hashed": 2,
    "manifest-tmp": 2,
    "manifest-renamed": 3,
    "verified": 3,
    "retention": 3,
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, str(SCRIPT), str(folder), *AFTER]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.split("\n")[:-1] == [f"{phase} 9" for phase in AFTER], done.stderr
    return folder


@pytest.mark.parametrize("phase", AFTER)
def test_a_kill_inside_a_save_costs_at_most_that_save(killed, phase, caplog):
    empty = {"w": jnp.zeros(1000), "step": jnp.asarray(0, jnp.int32)}
    with Checkpoints(killed / phase) as checkpoints:
        assert checkpoints.latest() == AFTER[phase]
        restored = checkpoints.restore(empty)
        assert restored.host == {"step": restored.step}
        assert restored.step == AFTER[phase]
        assert int(restored.state["step"]) == restored.step
        want = np.arange(1000, dtype=np.float32) * restored.step
        assert (np.asarray(restored.state["w"]) == want).all()
        assert not caplog.records, "a save cut short is no damage"
        checkpoints.save(4, restored.state, {}, {})
        checkpoints.wait()
        assert checkpoints.steps() == [AFTER[phase], 4]
    names = {path.name for path in (killed / phase / "checkpoints").iterdir()}
    assert names == {f"{AFTER[phase]:08d}", "00000004"}
