"""Interrupted and resumed = uninterrupted, bit for bit; and what cannot be resumed says so."""

import copy
import dataclasses
import functools
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from benchmarks import host_time
from ptjax import loop, sharding
from ptjax.checkpoint import Checkpoints, open_step
from ptjax.config import lora, to_json
from ptjax.data.iterate import TrainIterator
from ptjax.errors import UserError
from ptjax.export import export
from ptjax.generate.replies import reply
from ptjax.metrics import read_rows
from ptjax.models.compute import Compute
from ptjax.models.peft import read_adapter
from ptjax.optim import OPTIMIZERS
from ptjax.prepare import abstract, initial_state, optimizer, prepare
from ptjax.resuming import outlook
from ptjax.step import StepOptions
from ptjax.workdir import load, load_workdir, merged
from tests import tiny, whole_runs

NEXT = TrainIterator.__next__
MAKE_MESH = sharding.make_mesh
CONFIGS = {
    "adapters": {
        "lora": lora(rank=4, dropout=0.1),
        "model.dropout": 0.1,
        "checkpoint.best": ["eval/loss", "min"],
    },
    "full": {
        "accumulate": 2,
        "data.tokens_per_batch": 1024,
        "ema": 0.9,
        "checkpoint.async_save": False,
    },
    "bfloat16": {
        "lora": lora(rank=4),
        "trainable": r".*\.lora_[ab]|norm",
        "model.param_dtype": "bfloat16",
        "model.dtype": "bfloat16",
        "model.base": "nf4",
        "optim.state_bits": 8,
        "optim.rounding": "stochastic",
        "ema": 0.9,
        "samples.prompts": ["what is blue"],
        "samples.max_tokens": 4,
    },
}


class PowerCut(Exception):
    """The run ends here."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def prepared():
    return tiny.Prepared()


@pytest.fixture
def run(folder, prepared, monkeypatch):
    """Trains; `at` = {step: what to do instead of its batch}."""

    def train(name, kind="adapters", at=None, quiet=True, **changes):
        def pull(batches):
            (at or {}).get(batches.get_state()["step"] + 1, lambda: None)()
            return NEXT(batches)

        monkeypatch.setattr(TrainIterator, "__next__", pull)
        monkeypatch.setattr(loop, "prepare", prepared)
        if kind == "bfloat16":
            monkeypatch.setattr(sharding, "make_mesh", on_one_device)
        config = tiny.tiny_config(folder, **{**CONFIGS[kind], **changes})
        return loop.train(config, str(folder / name), quiet=quiet)

    return train


def on_one_device(sizes, devices=None):
    """A mesh whose programs compile in half the time."""
    return MAKE_MESH(sizes, devices or jax.devices()[:1])


@pytest.fixture(scope="module", params=["adapters", "full"])
def kind(request):
    return request.param


def whole(run, folder, kind="adapters"):
    """The workdir of a run that nothing disturbed."""
    if not (folder / kind).exists():
        run(kind, kind)
    return folder / kind


def copy_of(run, folder, name):
    shutil.copytree(whole(run, folder), folder / name)
    return folder / name


def cut_power():
    raise PowerCut


def files(workdir):
    return {
        str(path.relative_to(workdir)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in workdir.rglob("*")
        if path.is_file()
    }


def same(one, other):
    return tiny.saved(one) == tiny.saved(other) and tiny.rows(one) == tiny.rows(other)


def test_a_run_cut_short_twice_ends_as_one_that_was_not(run, folder, kind):
    name = f"{kind} cut"
    for step in (4, 6):
        with pytest.raises(PowerCut):
            run(name, kind, {step: cut_power})
    result = run(name, kind)
    assert (result.step, result.finished) == (6, True)
    assert same(folder / name, whole(run, folder, kind))
    best = [Checkpoints(folder / n).steps() for n in (name, kind)]
    assert best[0] == best[1]


def test_a_run_in_bfloat16_is_read_back_as_it_was_judged(run, folder, tmp_path):
    workdir = whole(run, folder, "bfloat16")
    leaves = open_step(workdir).leaves
    assert (leaves["params/norm"].dtype, leaves["ema/norm"].dtype) == ("bfloat16", "float32")
    loaded = load_workdir(workdir)
    assert loaded.params["layers.q"].dtype == "bfloat16"
    prompts, compute = CONFIGS["bfloat16"]["samples.prompts"], Compute(dtype="bfloat16")
    said = reply(loaded, prompts, max_tokens=4, compute=compute)
    samples = tiny.rows(workdir, "samples.jsonl")
    assert [row["step"] for row in samples] == [0, 6]
    assert samples[1]["completion"] == said[0]
    export(str(workdir), tmp_path / "out")
    exported = load(str(tmp_path / "out"), param_dtype="bfloat16")
    assert tiny.digest(exported.params) == tiny.digest(merged(loaded).params)


def test_a_run_goes_on_from_an_adapter(run, folder, tmp_path):
    """In bfloat16. It begins with the loss that the first ended with; it ends the same, cut or not.

    What came whole with the adapter stays as it is.
    """
    first = whole(run, folder, "bfloat16")
    adapter = tmp_path / "adapter"
    export(str(first), adapter, kind="adapter")
    changes = {"lora.adapter": str(adapter), "lora.rank": 2, "trainable": None}
    changes |= {"samples.prompts": [], "optim.rounding": "nearest"}  # adapters are float32
    second = run("second", "bfloat16", **changes)
    held_out = [
        [row["eval/loss"] for row in tiny.rows(workdir) if "eval/loss" in row]
        for workdir in (first, folder / "second")
    ]
    assert held_out[1][0] == held_out[0][-1] < held_out[0][0]
    assert held_out[1][-1] < held_out[1][0]
    with pytest.raises(PowerCut):
        run("second cut", "bfloat16", {4: cut_power}, **changes)
    run("second cut", "bfloat16", **changes)
    assert same(folder / "second cut", folder / "second")
    assert not any(name.endswith("/norm") for name in open_step(folder / "second").leaves)
    loaded = load_workdir(folder / "second")
    assert loaded.model.lora.rank == 4
    assert tiny.digest(loaded.params) == tiny.digest(second.bundle.params)
    export(str(folder / "second"), tmp_path / "again", kind="adapter")
    model = loaded.model
    leaves = [
        read_adapter(path, model.table, model.config.dims)[1]
        for path in (adapter, tmp_path / "again")
    ]
    assert leaves[0].keys() == leaves[1].keys() > {"norm"}
    moved = {name for name, leaf in leaves[0].items() if (leaf != leaves[1][name]).any()}
    assert moved == leaves[0].keys() - {"norm"}


def test_a_run_cut_before_its_first_save_begins_anew(run, folder):
    with pytest.raises(PowerCut):
        run("early", at={2: cut_power})
    run("early")
    assert same(folder / "early", whole(run, folder))


@pytest.mark.parametrize(("step", "number"), [(3, signal.SIGTERM), (5, signal.SIGINT)])
def test_a_signal_saves_says_so_and_the_same_command_goes_on(run, folder, capsys, step, number):
    """At a step that is evaluated, and at one at which nothing else is due."""
    name, before = f"told at {step}", signal.getsignal(number)
    result = run(name, at={step: lambda: os.kill(os.getpid(), number)}, quiet=False)
    assert (result.step, result.finished, result.stopped_by) == (step, False, number)
    said = f"stopped at step {step} of 6; the same command goes on from there\n"
    assert capsys.readouterr().out == said
    assert tiny.saved(folder / name)[0] == step
    assert signal.getsignal(number) is before
    run(name)
    assert same(folder / name, whole(run, folder))


def test_a_finished_run_says_so_and_changes_nothing(run, folder, capsys):
    workdir = copy_of(run, folder, "finished")
    before = files(workdir)
    result = run("finished", quiet=False)
    assert (result.step, result.finished) == (6, True)
    said = capsys.readouterr().out
    assert said.startswith(f"{workdir} is finished: step 6 of 6; nothing was done")
    assert said.count("\n") == 1
    assert result.summary == (workdir / "summary.md").read_text()
    assert files(workdir) == before


def told(summary):
    """What the summary's first table says, by name."""
    lines = [line.split(" | ") for line in summary.splitlines() if line.count("|") == 3]
    return {name.removeprefix("| "): value.removesuffix(" |") for name, value in lines}


def test_the_summary_counts_the_tokens_of_all_steps_logged_or_not_over_all_sessions(run, folder):
    tokens = sum(row.get("tokens", 0) for row in tiny.rows(whole(run, folder)))
    assert told(run("adapters").summary)["tokens"] == f"{int(tokens):,}"
    for step in (4, 6):
        with pytest.raises(PowerCut):
            run("seldom logged", at={step: cut_power}, **{"log.every": 4})
    assert told(run("seldom logged", **{"log.every": 4}).summary)["tokens"] == f"{int(tokens):,}"
    (folder / "seldom logged" / "summary.md").unlink()
    again = told(run("seldom logged", **{"log.every": 4}).summary)
    assert (again["tokens"], again["steps"]) == (f"{int(tokens):,}", "6")


class Compiling:
    """A step that compiles for a while at its first two batches."""

    def __init__(self, step, seconds):
        self.step, self.seconds, self.programs = step, seconds, 0

    def __call__(self, *arguments):
        if self.programs < 2:
            time.sleep(self.seconds)
            self.programs += 1
        return self.step(*arguments)

    def _cache_size(self):
        return self.programs


def test_the_speed_is_that_of_the_steps_and_compilation_stands_apart(run, folder, prepared):
    plain = told(run("adapters warm").summary)
    usual = int(plain["time in steps"].removeprefix("0:"))
    key = to_json(tiny.tiny_config(folder, **CONFIGS["adapters"]))
    known = prepared.known[key]
    prepared.known[key] = dataclasses.replace(known, train_step=Compiling(known.train_step, 2.0))
    try:
        summary = told(run("compiling").summary)
    finally:
        prepared.known[key] = known
    counted = r"2 programs of the step, 0:0[56], not in the time in steps"
    assert re.fullmatch(counted, summary["compilation"])
    seconds = int(summary["time in steps"].removeprefix("0:"))
    assert seconds <= usual + 3  # of the four that were slept
    rate = float(summary["speed"].removesuffix(" tokens/s").replace(",", ""))
    assert rate > int(summary["tokens"].replace(",", "")) / (usual + 4)
    row = next(row for row in read_rows(folder / "compiling") if "tokens_per_second" in row)
    assert row["tokens_per_second"] > row["tokens"] / 1.5


def test_host_time_leaves_out_the_steps_that_compile(folder, prepared, monkeypatch):
    monkeypatch.setattr(loop, "prepare", prepared)
    config = tiny.tiny_config(folder, **CONFIGS["adapters"])
    job = prepared(config)
    slow = dataclasses.replace(job, train_step=Compiling(job.train_step, 0.5))
    monkeypatch.setitem(prepared.known, to_json(config), slow)
    found = host_time.measure(config, folder / "host time")
    rows = [row for row in read_rows(folder / "host time") if "host_ms" in row]
    assert [row["host_ms"] > 500 for row in rows] == [True, True, False, False, False, False]
    assert found == [row["host_ms"] for row in rows[2:]]


def test_more_steps_go_on_from_a_finished_run(run, folder, caplog):
    copy_of(run, folder, "more")
    assert run("more", steps=8).step == 8
    assert "steps changed since step 6: 8, was 6" in caplog.text
    steps = [row["step"] for row in tiny.rows(folder / "more") if "loss" in row]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_damaged_newest_checkpoint_costs_its_steps_and_no_bit(run, folder, caplog):
    workdir = copy_of(run, folder, "damaged")
    newest = workdir / "checkpoints" / "00000006"
    largest = max(newest.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 4
    largest.write_bytes(data)
    run("damaged")
    assert "step 6 does not verify" in caplog.text
    assert "resuming from step 4" in caplog.text
    assert same(workdir, whole(run, folder))
    assert (workdir / "checkpoints" / "00000006.bad").exists()


@pytest.mark.parametrize("name", ["manifest.json", "host.json"])
def test_no_good_checkpoint_is_exit_3_and_nothing_is_deleted_or_retrained(run, folder, name):
    workdir = copy_of(run, folder, f"no good {name}")
    for step in (workdir / "checkpoints").iterdir():
        path = step / name
        path.write_bytes(path.read_bytes()[:-9] + b"ruined }}")
    before = files(workdir)
    with pytest.raises(UserError, match=r"no checkpoint in .* verifies .*nothing was deleted") as e:
        run(workdir.name)
    assert e.value.exit_code == 3
    assert files(workdir) == before


OTHERS = {
    "base": ({"model.source": "other model"}, r"the base model at .*other model is not the one"),
    "data": (
        {"data.sources": [{"path": "other.jsonl"}]},
        r"config.data: the data, their order or the tokenizer",
    ),
    "rank": ({"lora": lora(rank=8)}, r"is float32\[.*\] in the checkpoint, float32\[.*\] in this"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_run_is_refused_and_its_dry_run_says_the_same(
    run, folder, prepared, monkeypatch, other
):
    changes, said = OTHERS[other]
    workdir = copy_of(run, folder, f"other {other}")
    tiny.write_model(folder / "other model", seed=1)
    tiny.write_chats(folder / "other.jsonl", 48, seed=2)
    before = files(workdir)
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=said) as told:
        run(workdir.name, steps=8, **changes)
    config = tiny.tiny_config(folder, **{**CONFIGS["adapters"], "steps": 8, **changes})
    with pytest.raises(UserError) as foretold:
        outlook(prepared(config), str(workdir))
    assert str(foretold.value) == str(told.value)
    assert files(workdir) == before


def test_a_dry_run_says_where_the_run_would_go_on(run, folder, prepared):
    workdir = copy_of(run, folder, "looked at")
    before = files(workdir)
    for steps, said in ((6, "step 6 of 6 is there"), (8, "the run goes on from step 6 of 8")):
        config = tiny.tiny_config(folder, **CONFIGS["adapters"], steps=steps)
        assert outlook(prepared(config), str(workdir)).startswith(said)
    assert files(workdir) == before


@pytest.fixture(scope="module")
def begun(folder):
    """(optimizer, mesh) -> the state before the first step, and what a checkpoint holds of it."""

    @functools.cache
    def prepared(mesh):
        sizes = {f"mesh.{axis}": size for axis, size in ({"fsdp": 1} | dict(mesh)).items()}
        config = tiny.tiny_config(folder, **CONFIGS["full"], **sizes)
        make_mesh, count = sharding.make_mesh, math.prod(dict(mesh).values())
        with pytest.MonkeyPatch.context() as patch:
            devices = jax.devices()[:count]
            patch.setattr(sharding, "make_mesh", lambda sizes: make_mesh(sizes, devices))
            return config, prepare(config)

    def begin(name, **mesh):
        config, job = prepared(tuple(mesh.items()))
        config = copy.deepcopy(config)
        config.optim.name = name
        params = job.state.params
        _, tx = optimizer(config, job.rows, params, job.steps)
        options = StepOptions(ema=config.ema)
        state = initial_state(config, params, tx, options, job.mesh, job.bound)
        return state, abstract(state)

    return begin


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_saved_on_one_device_is_the_same_bits_on_eight(begun, tmp_path, name):
    state, _ = begun(name)
    draw = np.random.default_rng(0)

    def noise(leaf):
        values = draw.normal(size=leaf.shape) * 100
        return jax.device_put(np.asarray(values, leaf.dtype), leaf.sharding)

    state = jax.tree.map(noise, state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {}, {})
    _, bits = tiny.saved(tmp_path)
    meshes = [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 8}, {"fsdp": 2, "tensor": 4}]
    for mesh in meshes if name == "adamw" else meshes[:1]:
        _, asked = begun(name, **mesh)
        restored = Checkpoints(tmp_path).restore(asked).state
        for leaf, wanted, old in zip(*map(jax.tree.leaves, (restored, asked, state)), strict=True):
            assert leaf.sharding == wanted.sharding
            assert np.asarray(leaf).tobytes() == np.asarray(old).tobytes()
        assert len(restored.params["layers.q"].sharding.device_set) == 8
    assert tiny.saved(tmp_path) == (1, bits)


def test_the_campaigns_runs_are_of_every_kind_and_stop_inside_rollouts(tmp_path, monkeypatch):
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: list(first))
    tiny.write(tmp_path)
    updates, remembered = {}, {}
    for method, own in whole_runs.CONFIGS.items():
        settings = whole_runs.settings(tmp_path, method, own)
        run = prepare(tiny.tiny_config(tmp_path, **settings))
        updates[method], remembered[method] = run.updates, {*run.state.carry}
    assert updates == {"sft": 1, "dpo": 1, "grpo": 4, "ppo": 4} and whole_runs.EVERY % 4
    assert remembered["grpo"] == {"buffer", "kl_control"}
    assert remembered["ppo"] == {"buffer", "kl_control", "entropy_control"}


def test_killed_processes_end_in_the_bits_of_one_that_was_not():
    command = [sys.executable, "-m", "tests.whole_runs", "--kills=1", "--save_kills=1"]
    done = subprocess.run([*command, "--sigterms=1"], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kill -9 at random moments: 1 kills" in done.stdout
    assert "kill -9 inside a save: 1 kills" in done.stdout
    assert "SIGTERM at random moments: 1" in done.stdout
