"""Rollouts of two processes are those of one: answers, rewards, updates, and how they end."""

import json
import re

import jax
import numpy as np
import pyarrow.parquet
import pytest

from ptjax.checkpoint import open_step
from ptjax.loop import train
from tests import tiny
from tests.full import only_in_full
from tests.test_processes import OVERRIDES, finish, start

STEPS, KEPT = 4, 3
"""Two rollouts of two updates each; the checkpoint is of the second one's middle."""
CLOCK = {"rollout/seconds", "rollout/tokens_per_second", "reward/seconds"}


OTHERS = {
    "ppo": {"hparams.critic": "separate"},
    "raft": {"hparams.drop_no_signal": True},
    "grpo": {"hparams.dynamic_sampling": True, "hparams.max_rounds": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("rollouts"))


def write(folder):
    """Prompts of which 16 are answered in a rollout; the third meets a row that is refused."""
    tiny.write(folder, vocab_size=384)
    lines = [{"prompt": "ship", "letter": "aeiou"[i % 5]} for i in range(64)]
    lines[38]["letter"] = "z"
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def settings(folder, asked, steps=STEPS, method=None):
    asked.mkdir()
    return {
        **OVERRIDES,
        "steps": steps,
        "accumulate": 1,
        "optim.warmup": 0,
        **(method or {"method": "dapo", "hparams.max_rounds": 2}),
        "rewards": [{"name": "tests.judged.noted", "folder": str(asked)}],
        "rollout.n": 2,
        "rollout.max_tokens": 6,
        "rollout.minibatches": 2,
        "data.sources[0].path": str(folder / "prompts.jsonl"),
        "data.packing": False,
        "data.shuffle": False,
        "data.batch_size": 8,
        "checkpoint.every": KEPT,
        "checkpoint.async_save": False,
        "eval.every": 0,
        "data.validation": None,
        "log.completions": 1,
        "samples.prompts": [],
    }


def told(workdir, asked):
    """What a run wrote: metrics, tables, and by process what its rewards were asked."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    tables = sorted((workdir / "completions").glob("*.parquet"))
    return {
        "rows": tiny.rows(workdir),
        "padding": [row["padding"] for row in map(json.loads, lines) if "padding" in row],
        "tables": {path.name: pyarrow.parquet.read_table(path).to_pylist() for path in tables},
        "asked": [
            [json.loads(line) for line in path.read_text().splitlines()]
            for path in sorted(asked.glob("*.jsonl"))
        ],
    }


@pytest.fixture(scope="module")
def two(folder):
    """Two processes of two devices each, to the row that the second one's reward refuses."""
    asked = folder / "asked_by_two"
    processes = start(folder, **settings(folder, asked, steps=100))
    finish(folder, processes, codes=[2, 2])
    return told(folder / "run", asked)


@pytest.fixture(scope="module")
def four_devices():
    with pytest.MonkeyPatch.context() as patch:
        first = jax.devices()[:4]
        patch.setattr(jax, "devices", lambda *_: list(first))
        yield


@pytest.fixture(scope="module")
def alone(folder, four_devices):
    """The same of this process, with as many devices, to the step before."""
    asked = folder / "asked_by_one"
    config = tiny.tiny_config(folder, **settings(folder, asked))
    train(config, str(folder / "alone"), quiet=True)
    return told(folder / "alone", asked)


def test_the_numbers_are_those_of_one_process(two, alone):
    rows, wanted = two["rows"], alone["rows"]
    assert wanted[0]["rollout/rounds"] == wanted[2]["rollout/rounds"] == 2
    same_numbers(rows, wanted)
    assert two["padding"] == alone["padding"]


def same_numbers(rows, wanted):
    assert [row["step"] for row in rows] == [row["step"] for row in wanted] == [1, 2, 3, 4]
    for row, expected in zip(rows, wanted, strict=True):
        assert row.keys() == expected.keys()
        for name in row.keys() - CLOCK:
            np.testing.assert_allclose(
                row[name], expected[name], rtol=5e-5, atol=1e-6, err_msg=f"{row['step']} {name}"
            )


@only_in_full
@pytest.mark.parametrize("method", OTHERS)
def test_other_methods_too(tmp_path, four_devices, method):
    folder, chosen = write(tmp_path), {"method": method, **OTHERS[method]}
    finish(folder, start(folder, **settings(folder, folder / "by_two", method=chosen)))
    config = tiny.tiny_config(folder, **settings(folder, folder / "by_one", method=chosen))
    train(config, str(folder / "alone"), quiet=True)
    both, one = (
        told(folder / name, folder / asked)
        for name, asked in (("run", "by_two"), ("alone", "by_one"))
    )
    same_numbers(both["rows"], one["rows"])
    pairs = zip(*both["asked"], strict=True)
    assert [first + second for first, second in pairs] == one["asked"][0]
    leaves, wanted = (
        stored.read(stored.leaves) for stored in (open_step(folder / n) for n in ("run", "alone"))
    )
    assert any("critic" in name for name in wanted) == (method == "ppo")
    for name, leaf in leaves.items():
        np.testing.assert_allclose(leaf, wanted[name], atol=1e-5, err_msg=name)


def test_the_answers_are_those_of_one_process(two, alone):
    assert (
        two["tables"].keys()
        == alone["tables"].keys()
        == {"step_000001.parquet", "step_000003.parquet"}
    )
    for name, table in two["tables"].items():
        assert len(table) == len(alone["tables"][name])
        assert sum(row["trained"] for row in table) == 16
        for row, expected in zip(table, alone["tables"][name], strict=True):
            advantages = row.pop("advantage"), expected["advantage"]
            assert row == {key: expected[key] for key in row}
            assert advantages[0] == pytest.approx(advantages[1], abs=1e-5, nan_ok=True)
            assert advantages[0] or not row["trained"]


def test_each_answer_is_judged_once_by_the_process_whose_prompt_it_is(two, alone):
    first, second = two["asked"]
    (wanted,) = alone["asked"]
    refused = first.pop()
    assert len(refused) == 8 and len(first) == len(second)
    assert [a + b for a, b in zip(first, second, strict=True)] == wanted
    assert {len(call) for call in [*first, *second]} == {8}


def test_what_one_s_reward_refuses_ends_both_with_one_line(folder, two):
    for index in range(2):
        said = (folder / f"err{index}.txt").read_text()
        assert re.findall(r"^error: .*", said, re.M) == ["error: no text is judged by z"]
        assert "Traceback" not in said


def test_one_process_goes_on_within_a_rollout_of_two(folder, two, alone):
    both = [open_step(folder / name, KEPT) for name in ("run", "alone")]
    leaves, wanted = (stored.read(stored.leaves) for stored in both)
    assert leaves.keys() == wanted.keys() and any("buffer" in name for name in leaves)
    for name, leaf in leaves.items():
        np.testing.assert_allclose(leaf, wanted[name], atol=1e-5, err_msg=name)
    asked = folder / "asked_further"
    config = tiny.tiny_config(folder, **settings(folder, asked))
    train(config, str(folder / "run"), quiet=True)
    further = told(folder / "run", asked)
    assert further["asked"] == [], "its answers are in the checkpoint"
    row, expected = (found["rows"][-1] for found in (further, alone))
    assert row["step"] == expected["step"] == STEPS
    assert row["loss"] == pytest.approx(expected["loss"], rel=5e-5, abs=1e-6)
