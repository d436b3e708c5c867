"""A tiny model, ragged examples, batches of them in every layout: what the core's tests share."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ptjax import sharding
from ptjax.algorithms import METHODS
from ptjax.forward import ForwardOptions
from ptjax.models import spec
from ptjax.models.compute import Compute
from ptjax.models.config import GLOBAL_WINDOW, ModelConfig, Rope
from ptjax.models.decoder import Decoder
from ptjax.step import gradients
from ptjax.types import TrainState

CONFIG = ModelConfig(
    family="llama",
    vocab=64,
    embed=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=4,
    mlp=24,
    eps=1e-5,
    tied=False,
    ropes=(Rope((1.0, 0.1)),),
    rope_kind=(0, 0),
    window=(GLOBAL_WINDOW, 5),
    max_positions=64,
    attn_scale=0.5,
)
MODEL = Decoder(CONFIG)
SCORER = Decoder(CONFIG, head="score")
VALUERS = {
    "shared": Decoder(CONFIG, head="lm_value"),
    "separate": Decoder(CONFIG, head="lm_critic"),
}


class Example(NamedTuple):
    tokens: np.ndarray
    mask: np.ndarray
    weight: float


# XLA without its slower passes: these programs are compiled more often than they are run.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}
MESHES = {
    "fsdp 8": dict(fsdp=8),
    "fsdp 4 x tensor 2": dict(fsdp=4, tensor=2),
    "data 2 x fsdp 2 x tensor 2": dict(data=2, fsdp=2, tensor=2),
    "sequence 2 x fsdp 4": dict(sequence=2, fsdp=4),
    "sequence 8": dict(sequence=8),
    "sequence 2 x fsdp 2 x tensor 2": dict(sequence=2, fsdp=2, tensor=2),
}
"""Of eight devices, by name: all axes alone and together."""


@functools.cache
def params(config=CONFIG, head="lm"):
    state = np.random.RandomState(5)
    made = {}
    for name, row in Decoder(config, head=head).table.items():
        shape = spec.shape(row, config.dims)
        scale = (
            math.prod(config.dims[axis] for axis in row.inputs) ** -0.5 if row.is_kernel else 0.2
        )
        center = 1.0 if row.init == "ones" else 0.0
        value = center + scale * state.standard_normal(shape)
        with jax.ensure_compile_time_eval():
            made[name] = jnp.asarray(value, jnp.float32)
    return made


def examples(count=8, longest=12, seed=0):
    """Ragged sequences, some with gaps in the mask, one with nothing to train, unequal weights."""
    state = np.random.RandomState(seed)
    made = []
    for i in range(count):
        length = longest if i == 0 else state.randint(2, longest + 1)
        mask = (state.rand(length) < 0.7).astype(np.float32)
        mask[0], mask[-1] = 0, i != 1
        if i == 1:
            mask[:] = 0
        weight = (1.0, 0.5, 2.0)[i % 3]
        made.append(Example(state.randint(1, CONFIG.vocab, length), mask, weight))
    return made


def batch(examples, length=12, side="right"):
    """One row an example, padded to `length` with a token that must not matter."""
    count = len(examples)
    columns = {
        "tokens": np.full((count, 1, length), 7, np.int32),
        "valid": np.zeros((count, 1, length), bool),
        "mask": np.zeros((count, 1, length), np.float32),
        "weights": np.array([[e.weight] for e in examples], np.float32),
    }
    for i, example in enumerate(examples):
        start = 0 if side == "right" else length - len(example.tokens)
        where = slice(start, start + len(example.tokens))
        columns["tokens"][i, 0, where] = example.tokens
        columns["mask"][i, 0, where] = example.mask
        columns["valid"][i, 0, where] = True
    return columns


def packed(examples, length=12, *, shards=1, accumulate=1, row=24):
    """The same with a `pack` column: each (shard, micro-batch) block packs its examples in turn."""
    columns = batch(examples, length)
    per = len(examples) // (shards * accumulate)
    blocks = []
    for shard in range(shards):
        for micro in range(accumulate):
            rows = [[]]
            for place in range(per):
                size = len(examples[(shard * per + place) * accumulate + micro].tokens)
                if len(rows[-1]) + size > row:
                    rows.append([])
                rows[-1] += range(place * length, place * length + size)
            blocks.append(rows)
    height = max(map(len, blocks))
    pack = np.full((shards, height, accumulate, row), -1, np.int32)
    for block, rows in enumerate(blocks):
        for i, places in enumerate(rows):
            pack[block // accumulate, i, block % accumulate, : len(places)] = places
    return columns | {"pack": pack.reshape(-1, row)}


def bound(**hparams):
    return METHODS["sft"].bind(hparams, "hparams")


def state(params):
    return TrainState(jnp.int32(0), params, {}, {}, {})


@functools.cache
def _compiled(model, bound, accumulate, options, mesh):
    def run(params, batch):
        return gradients(
            *(model, bound, state(params), batch), accumulate=accumulate, options=options, key=None
        )

    return jax.jit(run, compiler_options=QUICK)


def on_mesh(model, values, mesh):
    """Parameters where the rules put them."""
    return {
        name: jax.device_put(leaf, sharding.named(model.table[name].names, leaf.shape, mesh))
        for name, leaf in values.items()
    }


def loss_and_gradients(
    columns,
    *,
    model=MODEL,
    params_=None,
    mesh=None,
    accumulate=1,
    chunk=32,
    dtype="float32",
    remat="none",
    **hparams,
):
    """The mean loss and its gradients as numpy arrays, on one device or on a mesh."""
    options = ForwardOptions(Compute(dtype=dtype, remat=remat), head_chunk=chunk)
    run = _compiled(model, bound(**hparams), accumulate, options, mesh)
    values = params() if params_ is None else params_
    if mesh is None:
        loss, grads, _ = run(values, {k: jnp.asarray(v) for k, v in columns.items()})
    else:
        with jax.set_mesh(mesh):
            loss, grads, _ = run(on_mesh(model, values, mesh), sharding.put_batch(columns, mesh))
    return np.asarray(loss), jax.tree.map(np.asarray, grads)


def assert_same(one, other, rtol=1e-5):
    """Equal losses, and gradients equal to rounding relative to each leaf's largest entry."""
    np.testing.assert_allclose(one[0], other[0], rtol=rtol)
    for name, gradient in other[1].items():
        largest = np.abs(gradient).max()
        assert largest > 0, name
        np.testing.assert_allclose(one[1][name], gradient, atol=rtol * largest, err_msg=name)
