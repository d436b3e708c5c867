"""Updates of bfloat16 parameters that would be lost in their rounding.

bfloat16 has 8 significant bits: nearest rounding drops an update below 1/512 of its parameter,
whatever its sign, step after step (2010.06192).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, UInt

from ptjax.types import Leaf

ROUNDINGS = ("nearest", "stochastic", "kahan")
_SALT = 2**31 - 3


class Rounded(NamedTuple):
    """The state of `rounded`.

    Attributes:
      inner: of the transformation.
      count: int32, updates so far: the fold of the random seed.
      lost: of `kahan`, what each bfloat16 parameter's rounding has left out, in bfloat16.
    """

    inner: Any
    count: Leaf
    lost: Mapping[str, Leaf]


def rounded(
    tx: optax.GradientTransformation, rounding: str, seed: int
) -> optax.GradientTransformation:
    """The transformation, its updates such that `optax.apply_updates` rounds as asked.

    `stochastic`: up or down, with probabilities whose mean is the exact sum. `kahan`: to the
    nearest, and what that leaves out is added to the next update. Parameters of other dtypes are
    left to their own rounding.

    Args:
      tx: gives float32 updates.
      rounding: `stochastic` or `kahan`.
      seed: with the number of updates so far and the leaf's place in the order of names it decides
        every draw, on any mesh.
    """

    def init(params: Any) -> Rounded:
        lost = {}
        if rounding == "kahan":
            lost = {name: jnp.zeros_like(p) for name, p in params.items() if _is_narrow(p)}
        return Rounded(tx.init(params), jnp.int32(0), lost)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Rounded]:
        updates, inner = tx.update(updates, state.inner, params)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _SALT), state.count)
        moves, lost = {}, {}
        for place, name in enumerate(sorted(params)):
            before, move = params[name], updates[name]
            moves[name] = move
            if not _is_narrow(before):
                continue
            wide = before.astype(jnp.float32)
            if rounding == "stochastic":
                bits = jax.random.bits(jax.random.fold_in(key, place), move.shape, jnp.uint32)
                moves[name] = stochastic(wide + move, bits) - wide
            else:
                exact = wide + (move + state.lost[name].astype(jnp.float32))
                after = nearest(exact)
                moves[name] = after - wide
                lost[name] = (exact - after).astype(jnp.bfloat16)
        return moves, Rounded(inner, state.count + 1, lost)

    return optax.GradientTransformation(init, update)


def nearest(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The nearest bfloat16 number, in float32: unlike two casts, no compiler takes it away."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def stochastic(x: Float[Array, "..."], bits: UInt[Array, "..."]) -> Float[Array, "..."]:
    """One of the two bfloat16 numbers around x, in float32; its expectation is x.

    Random bits are added to the 16 that are cut off: they carry with the probability that these
    stand for.

    Args:
      x: float32; what is not finite stays as it is.
      bits: random, of which the low 16 count.
    """
    whole = jax.lax.bitcast_convert_type(x, jnp.uint32) + (bits & 0xFFFF)
    cut = jax.lax.bitcast_convert_type(whole & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), cut, x)


def _is_narrow(leaf: Any) -> bool:
    return leaf.dtype == jnp.bfloat16
