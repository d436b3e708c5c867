"""Where tokens stand, and which of them see which: what every kernel of attention is given."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

ATTENDED = "attended"
"""The name under which attention's result is known to the rematerialisation policies."""


class Span(NamedTuple):
    """Where tokens stand: positions in their own sequence, and which sequence (0 = padding).

    A sequence may go on where another one leaves off, and share its beginning: of the sequence
    `leads`, its tokens see all before position `begins` as if it were their own. Where a sequence
    stands whole, `leads` is itself and `begins` is 0; None: all do. Of one `leads`, all that share
    a beginning share the same one.
    """

    positions: Int[Array, "R L"]
    segments: Int[Array, "R L"]
    leads: Int[Array, "R L"] | None = None
    begins: Int[Array, "R L"] | None = None


def visible(query: Span, key: Span, window: Int[Array, ""] | int) -> Bool[Array, "R Q S"]:
    """Which keys a query sees: its own sequence, not after it, less than `window` back."""
    positions, segments = key.positions[:, None, :], key.segments[:, None, :]
    distance = query.positions[:, :, None] - positions
    same = query.segments[:, :, None] == segments
    if query.leads is not None and query.begins is not None:
        shared = (query.leads[:, :, None] == segments) & (positions < query.begins[:, :, None])
        same = same | shared
    return same & (distance >= 0) & (distance < window)


def run_starts(x: Int[Array, "R L"]) -> Int[Array, "R L"]:
    """Where in its row the run of equal entries begins that each entry stands in."""
    new = jnp.pad(x[:, 1:] != x[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    column = jnp.arange(x.shape[1], dtype=jnp.int32)
    return jax.lax.cummax(jnp.where(new, column, 0), axis=1)


def padded(x: Array, length: int, fill: int = 0) -> Array:
    """[R, L, ...], filled up to a length."""
    wide = [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, wide, constant_values=fill)


def padded_span(span: Span, length: int) -> Span:
    """A span filled up to a length with what no token sees."""
    return Span(
        padded(span.positions, length),
        padded(span.segments, length, fill=-1),
        None if span.leads is None else padded(span.leads, length, fill=-1),
        None if span.begins is None else padded(span.begins, length),
    )
