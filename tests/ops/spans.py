"""Queries, keys and where they stand, and attention as its formula says it."""

import jax
import jax.numpy as jnp
import numpy as np

from ptjax.ops.span import Span, visible

R, H, K, E = 2, 4, 2, 8


def arrays(queries, keys, seed=0):
    state = np.random.RandomState(seed)
    shapes = (R, queries, H, E), (R, keys, K, E), (R, keys, K, E), (R, queries, H, E)
    return [jnp.asarray(state.standard_normal(shape), jnp.float32) for shape in shapes]


def packed_span(length):
    """Two rows: three sequences and padding; padding and one sequence."""
    cuts = [length // 4, length // 2 + 1, length - 3]
    segments = np.zeros((R, length), np.int32)
    positions = np.zeros((R, length), np.int32)
    for number, (a, b) in enumerate(zip([0, *cuts], cuts, strict=False), 1):
        segments[0, a:b], positions[0, a:b] = number, np.arange(b - a)
    segments[1, 5:], positions[1, 5:] = 1, np.arange(length - 5)
    return Span(jnp.asarray(positions), jnp.asarray(segments))


def naive(q, k, v, query, key, window, *, scale, softcap=None):
    k, v = (jnp.repeat(x, H // K, axis=2) for x in (k, v))
    scores = jnp.einsum("rqhe,rshe->rhqs", q, k) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    mask = visible(query, key, window)[:, None]
    return jnp.einsum("rhqs,rshe->rqhe", jax.nn.softmax(jnp.where(mask, scores, -1e30)), v)


def rows_of(*rows):
    """A span of rows that each pack sequences of these lengths, padding at their ends."""
    length = max(map(sum, rows))
    segments, positions = np.zeros((2, len(rows), length), np.int32)
    for row, lengths in enumerate(rows):
        at = 0
        for number, size in enumerate(lengths):
            # numbers as packing gives them: in no order
            segments[row, at : at + size] = 1 + (7 * number + 3) % 11
            positions[row, at : at + size] = np.arange(size)
            at += size
    return Span(jnp.asarray(positions), jnp.asarray(segments))


def groups_of(*rows):
    """Rows of groups: (prompt, answers...): the prompt stands once, before the first answer."""
    length = max(sum(sum(group) for group in row) for row in rows)
    places = np.zeros((4, len(rows), length), np.int32)
    positions, segments, leads, begins = places
    for row, groups in enumerate(rows):
        at, number = 0, 1
        for prompt, *answers in groups:
            lead = number
            for answer in answers:
                first = 0 if number == lead else prompt
                here = slice(at, at + prompt + answer - first)
                positions[row, here] = np.arange(first, prompt + answer)
                segments[row, here], leads[row, here], begins[row, here] = number, lead, first
                at, number = here.stop, number + 1
    return Span(*map(jnp.asarray, places))


def check(got, wanted, q, k, v, ways):
    """Values, and the gradients of a random projection of them."""

    def both(function):
        def loss(q, k, v):
            out = function(q, k, v)
            return jnp.sum(out * ways), out

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    for a, b in zip(jax.tree.leaves(both(got)), jax.tree.leaves(both(wanted)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
