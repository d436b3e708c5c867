"""A run of several processes over loopback is the run of one; one goes on from what two saved."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from ptjax import data
from ptjax.checkpoint import open_step
from ptjax.loop import train
from ptjax.models.load import load
from tests import tiny, xla
from tests.full import only_in_full
from tests.two import ROOT, free_port

STEPS = 3
OVERRIDES = {
    "steps": STEPS,
    "accumulate": 2,
    "optim.schedule": "constant",
    # Adam divides by gradients' sizes: without this, rounding of the smallest decides.
    "optim.eps": 1e-3,
    "data.tokens_per_batch": 1024,
    "checkpoint.every": 0,
    "eval.every": 2,
    "samples.prompts": ["red sky", "tea"],
    "samples.max_tokens": 4,
}


def flags(port, index, count):
    """Of a command: who is there. So say flags, or a launcher's environment."""
    return [f"--coordinator=127.0.0.1:{port}", f"--processes={count}", f"--process={index}"], {}


def slurm(port, index, count):
    environment = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "localhost,elsewhere",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
        "JAX_COORDINATOR_PORT": str(port),
    }
    return ["--distributed"], environment


def ompi(port, index, count):
    environment = {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": str(count),
        "OMPI_COMM_WORLD_RANK": str(index),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(index),
        "JAX_COORDINATOR_PORT": str(port),
    }
    return ["--distributed"], environment


def start(folder, *, by=flags, count=2, each=(), cwd=(), **overrides):
    """Processes of `python -m ptjax.train` with two devices each, in one workdir.

    Args:
      folder: what `tiny.write` wrote.
      by: how they are joined.
      count: of processes.
      each: further words of each one's command.
      cwd: the folder that each runs in, and looks for packages first.
      **overrides: of the config.
    """
    config = tiny.write_config(folder, **{**OVERRIDES, **overrides})
    port = free_port()
    shared = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla.flags(2),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "ptjax.train", f"--config={config}"]
    command.append(f"--workdir={folder / 'run'}")
    processes = []
    for index in range(count):
        out, err = folder / f"out{index}.txt", folder / f"err{index}.txt"
        words, environment = by(port, index, count)
        words = [*command, *words, *(each[index] if each else ())]
        environment = {**shared, **environment, "PYTHONPATH": str(ROOT)}
        with out.open("w") as stdout, err.open("w") as stderr:
            processes.append(
                subprocess.Popen(
                    words,
                    stdout=stdout,
                    stderr=stderr,
                    env=environment,
                    cwd=cwd[index] if cwd else None,
                )
            )
    return processes


def finish(folder, processes, codes=(0, 0)):
    """Waits for all; what they wrote to standard output."""
    try:
        found = [process.wait(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    every = range(len(processes))
    told = [(folder / f"err{index}.txt").read_text()[-3000:] for index in every]
    assert found == [*codes], told
    return [(folder / f"out{index}.txt").read_text() for index in every]


def reached(folder, processes, step):
    """Waits until a run has done a step."""
    metrics = folder / "run" / "metrics.jsonl"
    patience = time.monotonic() + 200
    while not metrics.exists() or all(row["step"] < step for row in tiny.rows(folder / "run")):
        assert time.monotonic() < patience, (folder / "err0.txt").read_text()
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("processes"), vocab_size=384)


@pytest.fixture(scope="module")
def both(folder):
    """Standard output of two processes that ran to their last step."""
    return finish(folder, start(folder, by=slurm))


@pytest.fixture(scope="module")
def alone(tmp_path_factory, folder):
    """The workdir of the same run in this process."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    train(tiny.tiny_config(folder, **OVERRIDES), str(workdir), quiet=True)
    return workdir


def arrays(workdir):
    stored = open_step(workdir)
    return stored.step, stored.read(stored.leaves)


def close(one, other, atol):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], atol=atol, err_msg=name)


def same_runs(one, other):
    """Whether two workdirs have the same numbers at every step, and the same last checkpoint."""
    rows, wanted = tiny.rows(one), tiny.rows(other)
    assert [(row["step"], "loss" in row) for row in rows] == [
        (row["step"], "loss" in row) for row in wanted
    ]
    for row, expected in zip(rows, wanted, strict=True):
        assert row.keys() == expected.keys()
        for name, value in row.items():
            np.testing.assert_allclose(value, expected[name], rtol=2e-5, err_msg=name)
    (step, leaves), (wanted_step, wanted_leaves) = arrays(one), arrays(other)
    assert step == wanted_step == STEPS
    close(leaves, wanted_leaves, 5e-6)


def test_two_processes_train_what_one_trains(folder, both, alone):
    same_runs(folder / "run", alone)


@only_in_full
@pytest.mark.parametrize("sizes", [{"fsdp": 2, "tensor": 4}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_four_processes_train_what_one_trains(tmp_path, sizes):
    """Two devices each: of `tensor` 4 every process has a half."""
    folder = tiny.write(tmp_path, vocab_size=384)
    overrides = {f"mesh.{axis}": size for axis, size in sizes.items()}
    finish(folder, start(folder, count=4, **overrides), codes=[0] * 4)
    config = tiny.tiny_config(folder, **{**OVERRIDES, **overrides})
    train(config, str(folder / "alone"), quiet=True)
    same_runs(folder / "run", folder / "alone")


@only_in_full
@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_is_killed_ends_the_run_and_all_go_on_from_its_checkpoint(tmp_path, victim):
    folder = tiny.write(tmp_path, vocab_size=384)
    config = {"samples.prompts": [], "eval.every": 0, "checkpoint.every": 2}
    processes = start(folder, steps=100_000, **config)
    try:
        reached(folder, processes, 5)
        processes[victim].kill()
        code = processes[1 - victim].wait(60)
        # Where process 0 dies, jax's service dies with it: its abort may come before our line ends.
        assert code in ((5,) if victim else (5, -signal.SIGABRT))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    said = (folder / f"err{1 - victim}.txt").read_text()
    lines = [line for line in said.splitlines() if line.startswith("error:")]
    who = f"error: process {victim} of 2 (on {socket.gethostname()}) is gone: it was killed"
    assert len(lines) == 1 and lines[0].startswith(who), said
    assert "Traceback" not in said
    finish(folder, start(folder, steps=10, **config))
    losses = [row["step"] for row in tiny.rows(folder / "run") if "loss" in row]
    assert losses == list(range(1, losses[-1] + 1)) and losses[-1] >= 10


def test_the_first_process_alone_writes_and_speaks(folder, both, alone):
    def texts(workdir):
        lines = (workdir / "samples.jsonl").read_text().splitlines()
        return [(row["step"], row["completion"]) for row in map(json.loads, lines)]

    assert texts(folder / "run") == texts(alone)
    steps = [row["step"] for row in tiny.rows(folder / "run") if "loss" in row]
    assert steps == list(range(1, STEPS + 1))
    assert "## Held-out data" in both[0]
    assert all(line.startswith("[Gloo]") for line in both[1].splitlines())
    spoken = (folder / "err1.txt").read_text()
    assert "held-out loss" not in spoken and "tok/s" not in spoken
    assert "held-out loss" in (folder / "err0.txt").read_text()


def test_a_term_signal_to_one_stops_both_and_one_process_goes_on(folder, both, tmp_path):
    processes = start(folder, by=ompi, steps=100_000)
    try:
        reached(folder, processes, STEPS + 3)
        processes[1].send_signal(signal.SIGTERM)
        out = finish(folder, processes)
    finally:
        for process in processes:
            process.kill()
    stopped, _ = arrays(folder / "run")
    assert stopped > STEPS
    assert f"stopped at step {stopped} of 100000" in out[0]
    losses = [row["step"] for row in tiny.rows(folder / "run") if "loss" in row]
    assert losses == list(range(1, stopped + 1))
    config = tiny.tiny_config(folder, **{**OVERRIDES, "steps": stopped + 1, "samples.prompts": []})
    result = train(config, str(folder / "run"), quiet=True)
    assert (result.step, result.finished) == (stopped + 1, True)
    losses = [row["step"] for row in tiny.rows(folder / "run") if "loss" in row]
    assert losses == list(range(1, stopped + 2))


@pytest.mark.parametrize("packing", [True, False])
def test_a_process_makes_only_its_rows(folder, packing):
    config = tiny.tiny_config(folder, **{**OVERRIDES, "data.packing": packing})
    if not packing:
        config.data.batch_size = 16
    tokenizer = load(config.model.source).tokenizer

    def build(*own):
        return data.build(config.data, tokenizer, seed=0, shards=4, accumulate=2, own=own)

    whole, parts = build(0, 1, 2, 3), [build(0, 1), build(2, 3)]
    streams = [pipeline.train() for pipeline in (whole, *parts)]
    for _ in range(4):
        wanted, *got = [next(stream) for stream in streams]
        assert sum((part.examples for part in got), []) == wanted.examples
        assert len(got[0].examples) == len(got[1].examples)
        for name, column in wanted.columns.items():
            joined = np.concatenate([part.columns[name] for part in got])
            np.testing.assert_array_equal(joined, column, err_msg=name)
    for stream in streams:
        stream.close()
