"""Losses and rewards of a user's own, in a file outside the package: the texts, followed."""

import sys

import numpy as np
import pytest

from tests import tiny
from tests.followed import block, commands, enter, run, section
from tests.judged import write_judged

SMALL = (
    "--config.steps=2",
    "--config.data.validation=None",
    "--config.epochs=None",
    "--config.data.max_length=64",
    "--config.data.batch_size=8",
    "--config.data.packing=False",
    "--config.accumulate=1",
    "--config.log.tensorboard=False",
)
"""What makes a recipe's run one of seconds."""


def follow(folder, monkeypatch, module, text, *more):
    """Does what a section says, in a folder of its own, with a tiny model; the run's rows."""
    tiny.write_model(folder / "model")
    enter(folder, monkeypatch, module, block(text, "python"))
    (command,) = commands(block(text, "sh"))
    assert str(folder / "model") in command
    run(command, monkeypatch, *SMALL, *more)
    sys.modules.pop(module)
    assert tiny.saved(folder / "runs" / "mine")[0] == 2
    return [row for row in tiny.rows(folder / "runs" / "mine") if "loss" in row]


def test_a_loss_of_a_users_own_trains_by_its_dotted_path(tmp_path, monkeypatch):
    text = section("CONTRIBUTING.md", "Adding a loss in one file")
    assert len([line for line in block(text, "python").splitlines() if line]) <= 20
    write_judged(tmp_path / "pairs.jsonl", "pairs", 40)
    first, second = follow(
        tmp_path,
        monkeypatch,
        "my_losses",
        text,
        "--config.data.buckets=[64]",
    )
    assert first["loss"] == pytest.approx(2.0**2)  # the margin squared, where policy is reference
    assert np.isfinite(second["loss"]) and second["accepted"] == 1
    assert {"accuracy", "grad_norm"} <= second.keys()


def test_a_reward_and_a_policy_gradient_of_a_users_own(tmp_path, monkeypatch):
    text = section("docs/rollouts.md", "Your own reward and your own loss")
    write_judged(tmp_path / "prompts.jsonl", "prompts", 40)
    small = (
        "--config.rollout.max_tokens=8",
        "--config.rollout.n=4",
        "--config.checkpoint.best=None",
    )
    rows = follow(tmp_path, monkeypatch, "my_rl", text, *small)
    for row in rows:
        assert row["reward/short"] == row["rollout/reward"] <= 1
        assert 0 < row["signal"] < row["advantage/std"] < 0.5  # of rewards in [0, 1], not scaled
        assert row["accepted"] == 1
    assert list((tmp_path / "runs" / "mine" / "completions").glob("*.parquet"))
