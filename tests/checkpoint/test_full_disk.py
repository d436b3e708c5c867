import contextlib
import errno
import logging
import os
import subprocess

import jax
import jax.numpy as jnp
import pytest

from ptjax.checkpoint import Checkpoints
from ptjax.checkpoint.storage import is_full
from ptjax.errors import UserError

PHASES = ["copied", "arrays-written", "hashed", "manifest-tmp"]


@pytest.mark.parametrize("phase", PHASES)
def test_full_in_any_phase_keeps_the_last_good_step(tmp_path, state_of, same, caplog, phase):
    full = {"yes": False}

    def fault(done):
        if full["yes"] and done == phase:
            raise OSError(errno.ENOSPC, "No space left on device")

    checkpoints = Checkpoints(tmp_path, fault=fault)
    checkpoints.save(1, state_of(1), {}, {})
    checkpoints.wait()
    full["yes"] = True
    with pytest.raises(
        UserError, match=r"step 2 failed: the disk is full at .*last good step is 1"
    ):
        checkpoints.save(2, state_of(2), {}, {})
        checkpoints.wait()
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == 1
    assert errors[0].startswith("step 2:")
    full["yes"] = False
    with pytest.raises(UserError, match="step 2 failed"):
        checkpoints.close()
    with Checkpoints(tmp_path) as again:
        restored = again.restore(state_of(0))
        assert (restored.step, same(restored.state, state_of(1))) == (1, True)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    where = tmp_path / "disk"
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(where)]
    with contextlib.ExitStack() as stack:
        try:
            mounted = subprocess.run(command, capture_output=True).returncode == 0
        except FileNotFoundError:
            mounted = False
        if not mounted:
            pytest.skip("mounting a small file system needs root")
        stack.callback(subprocess.run, ["umount", "-l", str(where)], check=True)
        yield where


def random_state(step, size):
    return {"w": jax.random.bits(jax.random.key(step), (size,))}


def test_a_disk_that_is_really_full(small_disk, same, caplog):
    small, large = 150_000, 400_000  # 0.6 MB and 1.6 MB: one small and one large do not fit
    checkpoints = Checkpoints(small_disk)
    checkpoints.save(1, random_state(1, small), {}, {})
    checkpoints.wait()
    says = r"step 2 failed: the disk is full at .*: up to 1.6 MB needed, .* free; .*step is 1"
    with pytest.raises(UserError, match=says):
        checkpoints.save(2, random_state(2, large), {}, {})
    assert "step 2: checkpoint of step 2 failed" in caplog.text
    checkpoints.save(3, random_state(3, small), {}, {})
    checkpoints.close()
    assert checkpoints.steps() == [1, 3]
    template = {"w": jnp.zeros(small, jnp.uint32)}
    for step in (1, 3):
        got = Checkpoints(small_disk).restore(template, step=step)
        assert same(got.state, random_state(step, small))


def test_a_workdir_that_cannot_be_made_is_one_line(tmp_path, state_of):
    (tmp_path / "file").write_text("")
    checkpoints = Checkpoints(tmp_path / "file" / "run")
    with pytest.raises(UserError, match="step 1 failed: .*Not a directory") as caught:
        checkpoints.save(1, state_of(1), {}, {})
    assert "\n" not in str(caught.value)


def test_what_counts_as_full():
    wrapped = ValueError("RESOURCE_EXHAUSTED: [OS error 28: ENOSPC No space left on device]")
    assert is_full(wrapped)
    assert is_full(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)))
    outer = RuntimeError("outer")
    outer.__cause__ = OSError(errno.ENOSPC, "")
    assert is_full(outer)
    assert not is_full(OSError(errno.EIO, "I/O error"))
