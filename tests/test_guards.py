"""A batch gone bad, through whole runs: the rest of the run is what it would be without it."""

import types

import jax
import numpy as np
import pytest

from ptjax import loop
from ptjax.checkpoint import open_step
from ptjax.data import HostBatch
from ptjax.data.iterate import TrainIterator
from ptjax.errors import UserError
from tests import tiny

NEXT = TrainIterator.__next__


@pytest.fixture(scope="module")
def prepared():
    return tiny.Prepared()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def run(folder, prepared, tmp_path, monkeypatch):
    """Runs with batches changed: {number: factor of the loss}; factor None leaves one out."""

    def train(name, factors, **changes):
        def pull(batches):
            batch = NEXT(batches)
            factor = factors.get(batches.get_state()["step"], 1.0)
            if factor is None:
                return pull(batches)
            weights = batch.columns["weights"]
            weights[weights > 0] *= np.float32(factor)
            return batch

        monkeypatch.setattr(TrainIterator, "__next__", pull)
        monkeypatch.setattr(loop, "prepare", prepared)
        config = tiny.tiny_config(
            folder,
            method="tests.tiny.scaled",
            **{"optim.schedule": "constant", "optim.warmup": 0.0, "data.validation": None},
            **{"guard.spike": 20.0, "guard.spike_window": 3, "checkpoint.every": 1},
            **{"checkpoint.keep": 20, "steps": 8, **changes},
        )
        loop.train(config, str(tmp_path / name), quiet=True)
        return tmp_path / name

    return train


def learned(workdir, step=None):
    """Digest of parameters and optimizer, and the guard's counts."""
    stored = open_step(workdir, step)
    leaves = stored.read(stored.leaves)
    counts = {name: int(leaves[f"guard/{name}"]) for name in ("accepted", "skipped", "streak")}
    kept = {n: leaf for n, leaf in leaves.items() if n.startswith(("params/", "opt_state/"))}
    return tiny.digest(kept), counts


@pytest.mark.parametrize("factor", [np.nan, np.inf, -np.inf, 1e4])
def test_a_bad_batch_is_as_if_it_had_not_been(run, folder, factor):
    bad = run("bad", {5: factor})
    without = folder / "without"
    if not without.exists():
        run(without, {5: None}, steps=7)
    bits, counts = learned(bad)
    assert counts == {"accepted": 7, "skipped": 1, "streak": 0}
    assert (bits, counts | {"skipped": 0}) == learned(without)
    rows, fewer = tiny.rows(bad), tiny.rows(without)
    assert [row["accepted"] for row in rows] == [1, 1, 1, 1, 0, 1, 1, 1]
    assert rows[4]["loss"] is None or rows[4]["loss"] > 1000
    losses = [row["loss"] for row in rows if row["accepted"]]
    assert losses == [row["loss"] for row in fewer]
    assert learned(bad, 5)[0] == learned(bad, 4)[0]
    assert "skipped" in (bad / "summary.md").read_text()


def test_a_spike_before_the_window_is_full_is_no_spike(run):
    assert learned(run("early", {2: 1e4}))[1] == {"accepted": 8, "skipped": 0, "streak": 0}


def test_bad_batches_in_a_row_stop_the_run_and_leave_the_last_of_them(run, tmp_path, folder):
    bad = dict.fromkeys(range(4, 20), np.nan)
    with pytest.raises(
        UserError, match=r"5 steps in a row .* up to step 8; .*bad_batch_8.npz"
    ) as e:
        run("stops", bad, steps=12)
    assert e.value.exit_code == 4
    workdir = tmp_path / "stops"
    with np.load(workdir / "bad_batch_8.npz") as batch:
        assert set(batch) >= {"tokens", "mask", "weights"}
        assert np.isnan(batch["weights"]).any()
    newest, counts = learned(workdir)
    assert newest == learned(workdir, 3)[0]
    assert counts["accepted"] == 3
    with pytest.raises(UserError, match=r"5 steps in a row"):
        run("stops", bad, steps=12)
    whole = run("whole", {}, steps=12)
    assert learned(workdir, 3)[0] == learned(whole, 3)[0]


def test_each_of_several_processes_keeps_its_rows(tmp_path, monkeypatch):
    rows = np.arange(12).reshape(3, 4)
    stub = types.SimpleNamespace(workdir=str(tmp_path))
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    for index in range(3):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        batch = HostBatch({"tokens": rows[index : index + 1]}, [index])
        with pytest.raises(UserError, match=r"bad_batch_7\.0\.npz to \.2\.npz, a process's rows"):
            loop._Loop._give_up(stub, 7, batch, 5)
    paths = [tmp_path / f"bad_batch_7.{index}.npz" for index in range(3)]
    assert sorted(tmp_path.iterdir()) == paths
    np.testing.assert_array_equal(np.concatenate([np.load(p)["tokens"] for p in paths]), rows)


def test_fewer_in_a_row_do_not_stop_it(run):
    _, counts = learned(run("goes on", dict.fromkeys(range(4, 8), np.inf)))
    assert counts == {"accepted": 4, "skipped": 4, "streak": 0}


def test_a_streak_goes_on_over_a_restart(run, tmp_path):
    bad = dict.fromkeys(range(4, 20), np.nan)
    with pytest.raises(UserError, match=r"up to step 8"):
        run("straight", bad, steps=12)
    run("stopped", bad, steps=6)
    with pytest.raises(UserError, match=r"up to step 8"):
        run("stopped", bad, steps=12)
    assert learned(tmp_path / "stopped") == learned(tmp_path / "straight")
    assert jax.device_count() == 8
