import math
import pathlib
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptjax.checkpoint import Checkpoints, retention
from ptjax.errors import UserError

METRICS = st.dictionaries(
    st.integers(0, 50), st.fixed_dictionaries({}, optional={"loss": st.floats()}), max_size=12
)


@given(METRICS, st.integers(2, 5), st.sampled_from([None, ("loss", "min"), ("loss", "max")]))
def test_the_newest_and_the_best_stay_and_no_more(steps, keep, keep_best):
    gone = retention.surplus(steps, keep=keep, keep_best=keep_best)
    stay = set(steps) - set(gone)
    assert set(gone) <= set(steps)
    newest = set(sorted(steps)[-keep:])
    assert newest <= stay
    assert len(stay) <= keep + (keep_best is not None)
    rated = {s: m["loss"] for s, m in steps.items() if "loss" in m and not math.isnan(m["loss"])}
    if keep_best and rated:
        best = (min if keep_best[1] == "min" else max)(rated.values())
        assert any(rated.get(step) == best for step in stay)
    else:
        assert stay == newest


@pytest.mark.parametrize("keep", [1, 0, -1])
def test_fewer_than_two_are_refused(tmp_path, keep):
    with pytest.raises(UserError, match="at least 2"):
        Checkpoints(tmp_path, keep=keep)


def test_a_direction_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="neither 'min' nor 'max'"):
        Checkpoints(tmp_path, keep_best=("loss", "lowest"))


def test_the_best_step_stays_on_disk(tmp_path, state_of):
    with Checkpoints(tmp_path, keep_best=("reward", "max")) as checkpoints:
        for step, reward in enumerate([0.1, 0.9, 0.2, float("nan"), 0.3, 0.4], start=1):
            checkpoints.save(step, state_of(step), {}, {"reward": reward})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 5, 6]


def test_unsound_steps_are_not_counted_and_not_deleted(three_steps, tmp_path, state_of):
    workdir = pathlib.Path(shutil.copytree(three_steps, tmp_path / "run"))
    with Checkpoints(workdir) as checkpoints:
        checkpoints.restore(state_of(0))
        (workdir / "checkpoints" / "00000020" / "host.json").unlink()
        checkpoints.save(40, state_of(40), {}, {})
        checkpoints.wait()
        assert checkpoints.steps() == [20, 30, 40]


def test_a_deletion_that_was_cut_short_leaves_no_step(three_steps, tmp_path, state_of):
    workdir = pathlib.Path(shutil.copytree(three_steps, tmp_path / "run"))
    folder = workdir / "checkpoints" / "00000010"
    (folder / "manifest.json").rename(folder / "incomplete")
    (folder / "host.json").unlink()
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.steps() == [20, 30]
        checkpoints.restore(state_of(0))
        checkpoints.save(40, state_of(40), {}, {})
    assert not folder.exists()
