"""What the compiler plans to hold: the head's logits never exist at once."""

import jax
import jax.numpy as jnp
import pytest

from ptjax.ops.logprobs import token_stats

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
