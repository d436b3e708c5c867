"""A small state of every kind of leaf, and a run's folder with three steps of it."""

import pathlib
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ptjax.checkpoint import Checkpoints


@flax.struct.dataclass
class Guard:
    skipped: jax.Array
    median: jax.Array | None


def state_of(step: int) -> dict[str, Any]:
    """A state that differs in every leaf from that of another step."""
    params = {
        "layers.q.lora_a": jnp.arange(24.0).reshape(4, 6) + step,
        "embed/tokens": jnp.full((3, 5), 0.1 + step, jnp.bfloat16),
    }
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    grads = jax.tree.map(lambda leaf: leaf * (1 + step), params)
    opt_state = tx.update(grads, tx.init(params), params)[1]
    return {
        "step": jnp.asarray(step, jnp.int32),
        "params": params,
        "opt_state": opt_state,
        "guard": Guard(skipped=jnp.asarray(step % 2 == 0), median=None),
        "ema": None,
        "carry": {"rollout.buffer": {}, "": (jnp.full((2,), step, jnp.uint32), [None])},
    }


def same(left: Any, right: Any) -> bool:
    """Equal in structure, shapes, dtypes and every bit."""
    if jax.tree.structure(left) != jax.tree.structure(right):
        return False
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(
        a.dtype == b.dtype
        and a.shape == b.shape
        and np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in pairs
    )


@pytest.fixture(name="state_of")
def state_of_fixture() -> Callable[[int], Any]:
    return state_of


@pytest.fixture(name="same")
def same_fixture() -> Callable[[Any, Any], bool]:
    return same


@pytest.fixture(scope="session")
def three_steps(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A workdir with steps 10, 20, 30. Copy it before changing it."""
    workdir = tmp_path_factory.mktemp("run")
    with Checkpoints(workdir, keep=3) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, state_of(step), {"position": step}, {"loss": 1 / step})
    return workdir
