"""RAFT: the likelihood of what is kept, and a run of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet
import pytest

from ptjax.algorithms import METHODS
from ptjax.algorithms.raft import raft
from ptjax.algorithms.sft import sft
from ptjax.config import defaults
from ptjax.errors import UserError
from ptjax.metrics import read_rows
from ptjax.prepare import prepare
from ptjax.train import train
from ptjax.types import Outputs
from tests import tiny
from tests.judged import write_judged


def test_its_loss_is_sfts_on_what_is_kept():
    draw = np.random.RandomState(0)
    shape = (3, 4, 6)
    mask = jnp.asarray(draw.rand(*shape) < 0.5, jnp.float32)
    batch = {"mask": mask, "weights": jnp.asarray(draw.rand(3, 4) < 0.5, jnp.float32)}
    logps = jnp.asarray(-draw.rand(*shape), jnp.float32) * mask
    given = Outputs(logps=logps, entropy=-2 * logps)
    mean, metrics = raft(given, batch)
    terms, _ = sft(given, batch)
    assert float(mean.value()) == float(terms["loss"][1].value()) > 0
    assert float(metrics["entropy"].value()) == pytest.approx(2 * float(mean.value()))
    gradient = jax.grad(lambda x: raft(Outputs(x, entropy=x), batch)[0].value())(logps)
    counts = mask * batch["weights"][..., None]
    np.testing.assert_allclose(gradient, -counts / counts.sum(), rtol=1e-6)


def test_a_number_of_answers_that_keeps_none():
    with pytest.raises(UserError, match="hparams.keep = 0: it must be at least 1"):
        METHODS["raft"].bind({"keep": 0}, "config.hparams")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raft")
    config = defaults()
    config.method = "raft"
    config.steps = 2
    config.model.source = str(tiny.write_model(folder / "model"))
    config.rollout.n = 4
    config.rollout.max_tokens = 8
    config.rollout.temperature = 0.7
    config.rollout.minibatches = 2
    config.rewards = ["tests.judged.lower"]
    config.data.sources = [{"path": str(write_judged(folder / "p.jsonl", "prompts", 20))}]
    config.data.validation = 0.2
    config.data.max_length = 48
    config.data.packing = False
    config.data.batch_size = 8
    config.mesh.fsdp = 1
    config.mesh.data = 1
    config.log.tensorboard = False
    config.optim.learning_rate = 1e-3
    return config


def test_a_run(config, tmp_path, monkeypatch):
    """Sampled at 0.7, scored at 1; two updates a rollout, each of the best answers alone."""
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: list(first))
    seen = prepare(config).eval_step.__wrapped__.keywords["forward_options"]
    assert seen.temperature == 1.0
    result = train(config, str(tmp_path), quiet=True)
    assert result.finished and result.step == 2
    rows = tiny.rows(tmp_path)
    steps = [row for row in rows if "loss" in row]
    assert [("keep/reward" in row) for row in steps] == [True, False]
    row, part = (row for row in read_rows(tmp_path) if "loss" in row)
    assert row["train/seconds"] < row["tokens"] / row["tokens_per_second"]  # sampling is off it
    sampled = row["train/seconds"] + row["rollout/seconds"] + row["reward/seconds"]
    assert sampled == pytest.approx(row["tokens"] / row["tokens_per_second"], rel=1e-3)
    whole = part["tokens"] / part["train/seconds"]
    assert part["tokens_per_second"] == part["train/tokens_per_second"] == pytest.approx(whole)
    assert row["keep/answers"] == 0.25 and row["keep/prompts"] == 1
    assert row["keep/margin"] > 0 and row["entropy"] > 0
    assert row["keep/reward"] == pytest.approx(row["rollout/reward"] + row["keep/margin"])
    assert all(0 < row["trained_tokens"] <= 4 * 8 for row in steps)  # one answer of four
    held_out = [row for row in rows if "eval/rollout/reward" in row]
    for row in held_out:
        assert row["eval/loss"] == pytest.approx(-row["eval/rollout/reward"])
    table = pyarrow.parquet.read_table(tmp_path / "completions" / "step_000001.parquet")
    assert table.num_rows == 8 * 4 and "advantage" not in table.column_names
