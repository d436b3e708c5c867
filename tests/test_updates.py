"""Several updates of a rollout: each prompt once an epoch; a kill between them changes nothing."""

import dataclasses

import jax
import numpy as np
import pytest

from ptjax import loop
from ptjax.errors import UserError
from ptjax.flops import FlopCounter
from ptjax.job import BUFFER
from ptjax.prepare import prepare
from ptjax.updates import Updates
from tests import tiny
from tests.judged import write_prompts

PULL = Updates.pull
B, N = 8, 2
CONFIGS = {
    "grpo": {},
    "dapo": {"rewards": ["tests.judged.split"], "hparams.max_rounds": 2},
    "ppo": {"hparams.kl_target": 0.5},
}
TAUGHT = {"model.dtype": "bfloat16", "rewards": []}


class PowerCut(Exception):
    """The run ends here."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny.write(tmp_path_factory.mktemp("updates"))
    write_prompts(folder / "prompts.jsonl", 64)
    return folder


def config(folder, method="grpo", **changes):
    return tiny.tiny_config(
        folder,
        method=method,
        **{
            "data.sources[0].path": str(folder / "prompts.jsonl"),
            "data.validation": None,
            "data.batch_size": B,
            "data.packing": False,
            "mesh.fsdp": 1,
            "rollout.n": N,
            "rollout.max_tokens": 6,
            "rollout.epochs": 2,
            "rollout.minibatches": 2,
            "rewards": ["tests.judged.letters"],
            "steps": 8,
            "checkpoint.every": 1,
            "checkpoint.async_save": False,
            "eval.every": 0,
            "log.completions": 1,
            **CONFIGS.get(method, {}),
            **changes,
        },
    )


@pytest.fixture
def devices(monkeypatch):
    """Fewer devices than there are."""

    def first(count):
        some = jax.devices()[:count]
        monkeypatch.setattr(jax, "devices", lambda *_: list(some))

    return first


@pytest.fixture(scope="module")
def prepared():
    return tiny.Prepared()


@pytest.fixture
def train(folder, prepared, monkeypatch):
    """Trains; the power is cut before the step `cut`, counted from 1."""

    def run(name, method, cut=None, **changes):
        def pull(updates, step):
            if step + 1 == cut:
                raise PowerCut
            return PULL(updates, step)

        monkeypatch.setattr(Updates, "pull", pull)
        monkeypatch.setattr(loop, "prepare", prepared)
        return loop.train(config(folder, method, **changes), str(folder / name), quiet=True)

    return run


def parts(run, steps):
    """Each step's update, the state's carry handed on and nothing learnt."""
    state, updates = run.state, Updates(run, run.pipeline.train())
    with jax.set_mesh(run.mesh):
        for step in range(steps):
            update = updates.make(state, step, updates.pull(step))
            state = dataclasses.replace(state, carry=update.carry)
            yield update


def answers(update):
    """What tells the prompts of an update apart: their answers."""
    columns = update.host.columns
    return [
        tuple(columns["tokens"][row].reshape(-1).tolist()) for row in range(len(columns["tokens"]))
    ]


def test_a_step_is_counted_by_the_answers_that_it_trains_on(folder, devices):
    devices(1)
    run = prepare(config(folder, **{"rollout.epochs": 1, "rollout.minibatches": 1}))
    (update,) = parts(run, 1)
    columns = update.host.columns
    assert columns["tokens"].shape[:2] == (B, N)
    work = FlopCounter(run.bundle.model, run.rows, run.state, run.bound).of(update.host)
    assert work.slots == columns["pack"].size
    assert work.filled == (columns["pack"] >= 0).sum() < columns["valid"].sum()


@pytest.mark.parametrize("count", [1, 2])
def test_each_prompt_is_in_one_minibatch_of_every_epoch(folder, devices, count):
    devices(count)
    run = prepare(config(folder, **{"mesh.fsdp": count}))
    found = [*parts(run, 8)]
    assert [update.fresh for update in found] == [True, False, False, False] * 2
    assert [bool(update.table) for update in found] == [True, False, False, False] * 2
    dealt = []
    for first in (found[0], found[4]):
        buffer = np.asarray(first.carry[BUFFER]["tokens"])
        assert buffer.shape[:2] == (B, N)
        place = {tuple(group.reshape(-1).tolist()): row for row, group in enumerate(buffer)}
        assert len(place) == B
        begin = found.index(first) if first is found[0] else 4
        order = [[place[one] for one in answers(update)] for update in found[begin : begin + 4]]
        assert all(len(one) == B // 2 for one in order)
        for epoch in (order[:2], order[2:]):
            assert sorted(epoch[0] + epoch[1]) == [*range(B)]
            for part in epoch:  # a row stays on its shard
                halves = np.array(part).reshape(count, -1) // (B // count)
                np.testing.assert_array_equal(halves, np.arange(count)[:, None] + 0 * halves)
        assert [sorted(part) for part in order[:2]] != [sorted(part) for part in order[2:]]
        dealt.append(order)
    assert dealt[0] != dealt[1]
    for update in found:
        np.testing.assert_array_equal(update.columns["tokens"], update.host.columns["tokens"])
        assert {"old_logps", "advantages", "pack"} <= update.columns.keys()


def test_the_loss_of_one_update_is_the_same_packed_and_not(folder, devices):
    devices(1)
    once = {"rollout.epochs": 1, "rollout.minibatches": 1, "data.batch_size": B // 2}
    run = prepare(config(folder, **once))
    (update,) = parts(run, 1)
    assert BUFFER not in update.carry and "old_logps" not in update.columns
    assert len(update.columns["pack"]) < B // 2 * N
    unpacked = {name: x for name, x in update.columns.items() if name != "pack"}
    found = []
    for columns in (update.columns, unpacked):
        state = jax.tree.map(lambda x: x.copy(), run.state)
        with jax.set_mesh(run.mesh):
            _, logged = run.train_step(state, columns, None)
        found.append({name: float(value) for name, value in logged.items()})
    assert found[0] == pytest.approx(found[1], rel=1e-5, abs=1e-5)
    assert found[0]["grad_norm"] > 1e-3


@pytest.mark.parametrize("method", CONFIGS)
def test_a_run_killed_between_updates_ends_as_one_that_was_not(train, folder, devices, method):
    devices(1)
    whole = train(method, method)
    name = f"{method} killed"
    for step in range(2, 9) if method == "grpo" else (3, 6):
        with pytest.raises(PowerCut):
            train(name, method, cut=step)
    assert train(name, method).step == whole.step == 8
    assert tiny.saved(folder / name) == tiny.saved(folder / method)
    found = tiny.rows(folder / method)
    assert tiny.rows(folder / name) == found
    assert tiny.tables(folder / name) == tiny.tables(folder / method)
    assert [*tiny.tables(folder / method)] == ["step_000001.parquet", "step_000005.parquet"]
    ratios = [row["ratio"] for row in found if "ratio" in row]
    fresh, later = ratios[::4], ratios[1:4] + ratios[5:]
    np.testing.assert_allclose(fresh, 1, rtol=2**-23)  # a mean of ones is rounded once
    assert all(abs(ratio - 1) > 1e-5 for ratio in later)
    assert ["rollout/reward" in row for row in found if "loss" in row] == [True, *[False] * 3] * 2
    if method == "dapo":
        assert max(row.get("rollout/rounds", 0) for row in found) == 2


def test_what_is_kept_of_a_rollout_has_the_dtypes_that_its_stages_write(folder, devices):
    """Else a checkpoint of it fits no state of a run that is resumed."""
    devices(1)
    taught = {**TAUGHT, "reference.source": str(folder / "model")}
    run = prepare(config(folder, "gkd_on_policy", **taught))
    update, *_ = parts(run, 1)
    for name, room in run.state.carry[BUFFER].items():
        assert update.carry[BUFFER][name].dtype == room.dtype, name
    assert update.carry[BUFFER]["teacher_hidden"].dtype == "bfloat16"


def test_a_rollout_s_figures_are_in_the_next_row_that_is_written(train, folder, devices):
    """Rollouts precede steps 1 and 5, rows are of even steps; a kill between loses none."""
    devices(1)
    if not (folder / "grpo").exists():
        train("grpo", "grpo")
    train("even", "grpo", **{"log.every": 2})
    with pytest.raises(PowerCut):
        train("even killed", "grpo", cut=6, **{"log.every": 2})
    train("even killed", "grpo", **{"log.every": 2})
    assert tiny.rows(folder / "even killed") == tiny.rows(folder / "even")
    found = {row["step"]: row for row in tiny.rows(folder / "even")}
    every = {row["step"]: row for row in tiny.rows(folder / "grpo")}
    assert [*found] == [2, 4, 6, 8]
    assert ["rollout/reward" in row for row in found.values()] == [True, False] * 2
    for step in (2, 6):
        figures = {name for name in every[step - 1] if "loss" not in name} - {*every[step]}
        assert figures >= {"rollout/reward", "rollout/truncated", "advantage/std"}
        assert found[step] == every[step] | {name: every[step - 1][name] for name in figures}


def test_data_that_end_before_the_run_are_said(train, folder, devices):
    """Dynamic sampling takes two batches a rollout, and there are three."""
    devices(1)
    ends = {
        "data.sources": [{"path": str(folder / "prompts.jsonl"), "epochs": 0.375}],
        "rewards": ["tests.judged.alike"],
        "rollout.epochs": 1,
        "rollout.minibatches": 1,
        "steps": 3,
    }
    with pytest.raises(UserError, match="their epochs ended before step 3, since dynamic sampling"):
        train("ends", "dapo", **ends)
    rounds = [row["rollout/rounds"] for row in tiny.rows(folder / "ends") if "loss" in row]
    assert rounds == [2, 1]


def test_what_is_written_of_answers_has_their_advantages(train, folder, devices):
    devices(1)
    if not (folder / "grpo").exists():
        train("grpo", "grpo")
    table = tiny.tables(folder / "grpo")["step_000001.parquet"]
    assert len(table) == B * N
    for first, second in zip(table[::2], table[1::2], strict=True):
        assert first["prompt"] == second["prompt"] and first["example"] == second["example"]
        assert first["advantage"] == pytest.approx(-second["advantage"], abs=1e-6)
        assert (first["advantage"] > 0) == (first["reward"] > second["reward"])
    assert any(row["advantage"] > 0.5 for row in table)


def test_a_run_killed_on_two_devices_goes_on_with_the_rest_of_its_rollout(train, folder, devices):
    devices(2)
    sizes = {"mesh.fsdp": 2, "steps": 4}
    train("two", "grpo", **sizes)
    with pytest.raises(PowerCut):
        train("two killed", "grpo", cut=3, **sizes)
    train("two killed", "grpo", **sizes)
    assert tiny.saved(folder / "two killed") == tiny.saved(folder / "two")
    assert tiny.rows(folder / "two killed") == tiny.rows(folder / "two")
