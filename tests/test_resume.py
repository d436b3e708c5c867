"""Interrupted and resumed = uninterrupted, bit for bit; and what cannot be resumed says so."""

import dataclasses
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

from ptjax import loop, sharding
from ptjax.checkpoint import Checkpoints
from ptjax.config import lora, to_json
from ptjax.data.iterate import TrainIterator
from ptjax.errors import UserError
from ptjax.metrics import read_rows
from ptjax.prepare import prepare
from tests import tiny, whole_runs

NEXT = TrainIterator.__next__
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
        config = tiny.tiny_config(folder, **CONFIGS[kind], **changes)
        return loop.train(config, str(folder / name), quiet=quiet)

    return train


@pytest.fixture(scope="module", params=list(CONFIGS))
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


def test_a_run_cut_before_its_first_save_begins_anew(run, folder):
    with pytest.raises(PowerCut):
        run("early", at={2: cut_power})
    run("early")
    assert same(folder / "early", whole(run, folder))


@pytest.mark.parametrize("step", [3, 5])
def test_sigterm_saves_says_so_and_the_same_command_goes_on(run, folder, capsys, step):
    """At a step that is evaluated, and at one at which nothing else is due."""
    name = f"told at {step}"
    result = run(name, at={step: lambda: os.kill(os.getpid(), signal.SIGTERM)}, quiet=False)
    assert (result.step, result.finished) == (step, False)
    said = f"stopped at step {step} of 6; the same command goes on from there\n"
    assert capsys.readouterr().out == said
    assert tiny.saved(folder / name)[0] == step
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
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


def test_another_base_model_is_refused(run, folder):
    workdir = copy_of(run, folder, "other base")
    tiny.write_model(folder / "other model", seed=1)
    before = files(workdir)
    with pytest.raises(UserError, match=r"the base model at .*other model is not the one"):
        run("other base", steps=8, **{"model.source": str(folder / "other model")})
    assert files(workdir) == before


def test_other_data_are_refused(run, folder):
    workdir = copy_of(run, folder, "other data")
    other = tiny.write_chats(folder / "other.jsonl", 48, seed=2)
    before = files(workdir)
    with pytest.raises(UserError, match=r"config.data: the data, their order or the tokenizer"):
        run("other data", steps=8, **{"data.sources": [{"path": str(other)}]})
    assert files(workdir) == before


def test_other_adapters_are_refused(run, folder):
    workdir = copy_of(run, folder, "other rank")
    before = files(workdir)
    with pytest.raises(
        UserError, match=r"is float32\[.*\] in the checkpoint, float32\[.*\] in this"
    ):
        run("other rank", **{"lora.rank": 8})
    assert files(workdir) == before


def test_a_state_saved_on_one_device_is_the_same_bits_on_eight(folder, tmp_path, monkeypatch):
    eight = sharding.make_mesh
    with monkeypatch.context() as one:
        one.setattr(sharding, "make_mesh", lambda sizes: eight(sizes, jax.devices()[:1]))
        state = prepare(tiny.tiny_config(folder, **CONFIGS["full"])).state
    draw = np.random.default_rng(0)

    def noise(leaf):
        values = draw.normal(size=leaf.shape) * 100
        return jax.device_put(np.asarray(values, leaf.dtype), leaf.sharding)

    state = jax.tree.map(noise, state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {}, {})
    _, bits = tiny.saved(tmp_path)
    for mesh in ({"fsdp": 8}, {"fsdp": 2, "tensor": 4}, {"data": 2, "fsdp": 2, "tensor": 2}):
        sizes = {f"mesh.{axis}": size for axis, size in ({"fsdp": 1} | mesh).items()}
        abstract = prepare(tiny.tiny_config(folder, **CONFIGS["full"], **sizes)).abstract
        restored = Checkpoints(tmp_path).restore(abstract).state
        for leaf, asked, old in zip(
            *map(jax.tree.leaves, (restored, abstract, state)), strict=True
        ):
            assert leaf.sharding == asked.sharding
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
    command = [sys.executable, "-m", "tests.whole_runs", "--kills=2", "--save_kills=1"]
    done = subprocess.run([*command, "--sigterms=1"], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kill -9 at random moments: 2 kills" in done.stdout
    assert "kill -9 inside a save: 1 kills" in done.stdout
    assert "SIGTERM at random moments: 1" in done.stdout
