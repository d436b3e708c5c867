"""What the compiler plans to hold: logits never exist at once, long rows are cut over devices."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest

from ptjax import sharding
from ptjax.forward import ForwardOptions
from ptjax.models import spec
from ptjax.models.compute import Compute
from ptjax.models.decoder import Decoder
from ptjax.ops.logprobs import token_stats
from ptjax.optim import make_optimizer, make_schedule
from ptjax.step import StepOptions, gradients, new_guard, train_step
from ptjax.types import TrainState
from tests import toy

D, V = 64, 49152


def temporaries(stats, tokens):
    """Bytes of temporaries of the gradient with respect to hidden states and kernel."""

    def loss(hidden, kernel, targets, weights):
        return -jnp.sum(stats(hidden, kernel, targets, weights) * weights)

    shape = jax.ShapeDtypeStruct
    arrays = (
        shape((1, tokens, D), jnp.float32),
        shape((D, V), jnp.float32),
        shape((1, tokens), jnp.int32),
        shape((1, tokens), jnp.float32),
    )
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arrays).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def eager(hidden, kernel, targets, weights):
    return token_stats(hidden, kernel, targets, weights != 0, linear=weights)["logps"]


def recomputed(hidden, kernel, targets, weights):
    return token_stats(hidden, kernel, targets, weights != 0)["logps"]


def naive(hidden, kernel, targets, weights):
    logps = jax.nn.log_softmax(hidden @ kernel)
    return jnp.take_along_axis(logps, targets[..., None], -1)[..., 0]


@pytest.mark.parametrize("head", [eager, recomputed])
def test_the_head_does_not_grow_with_tokens_times_vocabulary(head):
    grown = temporaries(head, 4096) - temporaries(head, 2048)
    assert grown < 8 * 2048 * D * 4
    assert temporaries(head, 4096) < 4096 * V * 4 / 2


def test_a_naive_head_holds_them_all():
    assert temporaries(naive, 4096) > 4096 * V * 4


ROWS, LENGTH, PARTS, VOCAB = 16, 64, 2, 8192
TOKENS = ROWS * LENGTH // PARTS
"""Of one micro-batch of the whole step below."""


@functools.cache
def step(vocab, chunk, **hparams):
    """A whole train step: the sizes of all arrays in it, before XLA and after, and temporaries."""
    model = Decoder(toy.CONFIG.with_vocab(vocab))
    schedule = make_schedule(learning_rate=0.1, steps=10)
    tx, options = make_optimizer(model.table, schedule), StepOptions(accumulate=PARTS)
    run = functools.partial(
        train_step,
        model=model,
        bound=toy.bound(**hparams),
        tx=tx,
        schedule=schedule,
        options=options,
        forward_options=ForwardOptions(head_chunk=chunk),
    )

    def begin(params):
        return TrainState(jnp.int32(0), params, {}, tx.init(params), new_guard(options))

    shapes = spec.shapes(model.table, model.config.dims, jnp.dtype("float32"))
    batch = {
        name: jax.ShapeDtypeStruct((ROWS, 1, LENGTH), dtype)
        for name, dtype in {"tokens": "int32", "valid": "bool", "mask": "float32"}.items()
    } | {"weights": jax.ShapeDtypeStruct((ROWS, 1), "float32")}
    traced = jax.jit(run, donate_argnums=0).lower(jax.eval_shape(begin, shapes), batch)
    compiled = traced.compile(compiler_options=toy.QUICK)
    found = [
        {
            math.prod(map(int, size.split(",")))
            for size in re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", text)
        }
        for text in (traced.as_text("hlo"), compiled.as_text())
    ]
    return *found, compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    ("vocab", "chunk", "hparams"),
    [
        (VOCAB, 32, {}),
        (2 * VOCAB, 32, {}),
        (VOCAB, 128, {}),
        (VOCAB, 32, dict(label_smoothing=0.1, z_loss_weight=1e-4)),
    ],
)
def test_a_chunks_logits_are_the_largest_array_of_a_step(vocab, chunk, hparams):
    traced, compiled, _ = step(vocab, chunk, **hparams)
    assert max(traced) == max(compiled) == chunk * vocab < TOKENS * vocab / 3


def test_a_steps_temporaries_follow_the_chunk_and_not_the_tokens_times_the_vocabulary():
    (*_, wide), (*_, narrow), (*_, double) = step(VOCAB, 128), step(VOCAB, 32), step(2 * VOCAB, 32)
    assert wide - narrow >= (128 - 32) * VOCAB * 4
    assert double - narrow < TOKENS * VOCAB * 4 / 2


LONG = 2048
"""Tokens of each of two packed rows that are cut along their length."""


def cut(parts):
    """The gradient of long rows over so many devices: shapes in the program, temporaries."""
    mesh = sharding.make_mesh({"sequence": parts}, jax.devices()[:parts])
    options = ForwardOptions(Compute(remat="dots_and_attention"), head_chunk=32)

    def run(params, batch):
        state = toy.state(params)
        return gradients(
            toy.MODEL, toy.bound(), state, batch, accumulate=1, options=options, key=None
        )[:2]

    def shape(name, whole):
        where = sharding.named(toy.MODEL.table[name].names, whole.shape, mesh)
        return jax.ShapeDtypeStruct(whole.shape, whole.dtype, sharding=where)

    whole = spec.shapes(toy.MODEL.table, toy.CONFIG.dims, jnp.dtype("float32"))
    columns = {"tokens": "int32", "valid": "bool", "mask": "float32"}
    batch = {name: ((2, 1, LONG), dtype) for name, dtype in columns.items()}
    batch |= {"weights": ((2, 1), "float32"), "pack": ((2, LONG), "int32")}
    with jax.set_mesh(mesh):
        compiled = (
            jax.jit(run)
            .lower(
                {name: shape(name, leaf) for name, leaf in whole.items()},
                {
                    name: jax.ShapeDtypeStruct(*one, sharding=sharding.replicated(mesh))
                    for name, one in batch.items()
                },
            )
            .compile(compiler_options=toy.QUICK)
        )
    shapes = {
        tuple(map(int, size.split(",")))
        for size in re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", compiled.as_text())
    }
    return shapes, compiled.memory_analysis().temp_size_in_bytes


def test_rows_that_are_cut_along_their_length_are_whole_nowhere():
    """But its keys, its values and the numbers of its tokens; no two tokens have one of their own.

    Of the temporaries a quarter is left, and keys and values, half of what this model is wide.
    """
    (_, alone), (shapes, temporaries) = cut(1), cut(4)
    keys = toy.CONFIG.kv_heads * toy.CONFIG.head_dim
    assert keys < toy.CONFIG.embed
    whole = {shape for shape in shapes if {LONG, 2 * LONG} & {*shape}}
    assert not [shape for shape in whole if math.prod(shape) > 2 * LONG * keys]
    assert any(LONG // 4 in shape and math.prod(shape) > LONG // 2 * keys for shape in shapes)
    assert temporaries < 0.45 * alone
