"""Numbers in 8 or 4 bits: codes, and a float32 scale for each block along one axis.

x ≈ scale · decode(code), with scale = max |x| over the block (blockwise quantisation, 2110.02861,
section 2.1). Axes are counted from the end, so that a stack of layers is sliced with its codes.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""Quantiles of a normal distribution, scaled to [-1, 1] and with a 0 (2305.14314, appendix E)."""


class Codec(NamedTuple):
    """How a number in [-1, 1] is kept.

    Attributes:
      encode: float32 -> codes, the nearest number that has one.
      decode: codes -> float32.
      packed: whether two codes of 4 bits share a byte: the first half of a block has the high bits,
        the second half the low ones, so that each is a run of rows and no two rows interleave.
    """

    encode: Callable[[Array], Array]
    decode: Callable[[Array], Array]
    packed: bool = False


def quantise(x: Array, kind: str, axis: int, block: int) -> tuple[Array, Array]:
    """The codes of x, and the scale of each block.

    Args:
      x: any float array.
      kind: a key of `CODECS`.
      axis: along which blocks lie, negative.
      block: entries of one; it divides the axis.

    Returns:
      uint8 codes, the axis half as long where two share a byte; float32 scales, the axis as long
      as there are blocks.
    """
    codec = CODECS[kind]
    blocks = _split(x.astype(jnp.float32), axis, block)
    scale = jnp.max(jnp.abs(blocks), axis=axis, keepdims=True)
    unit = blocks * (1.0 / jnp.where(scale == 0, 1.0, scale))
    codes = codec.encode(jnp.clip(unit, -1.0, 1.0))
    if codec.packed:
        first, second = jnp.split(codes, 2, axis)
        codes = (first << 4) | second
    shape = _resized(x.shape, axis, scale.shape[axis - 1] * codes.shape[axis])
    return codes.reshape(shape), scale.squeeze(axis)


def dequantise(codes: Array, scale: Array, kind: str, axis: int, dtype: Any) -> Array:
    """What the codes stand for: scale · decode(code), in float32, then cast.

    Args:
      codes: from `quantise`, as is `scale`.
      scale: of each block.
      kind: what they were made with.
      axis: along which blocks lie, negative.
      dtype: of the result.
    """
    codec = CODECS[kind]
    parts = [codes >> 4, codes & 15] if codec.packed else [codes]
    block, wide = codes.shape[axis] // scale.shape[axis], jnp.expand_dims(scale, axis)
    made = [(codec.decode(_split(part, axis, block)) * wide).astype(dtype) for part in parts]
    whole = jnp.concatenate(made, axis)
    return whole.reshape(_resized(codes.shape, axis, len(parts) * codes.shape[axis]))


def _split(x: Array, axis: int, block: int) -> Array:
    """The axis as blocks x entries of one; entries are then the axis of the same number."""
    at = x.ndim + axis
    return x.reshape(*x.shape[:at], x.shape[at] // block, block, *x.shape[at + 1 :])


def _resized(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    at = len(shape) + axis
    return (*shape[:at], size, *shape[at + 1 :])


def _encode_int8(unit: Array) -> Array:
    return (jnp.round(unit * 127.0) + 128.0).astype(jnp.uint8)


def _decode_int8(codes: Array) -> Array:
    return (codes.astype(jnp.float32) - 128.0) * (1.0 / 127.0)


def _encode_nf4(unit: Array) -> Array:
    middles = [(a + b) / 2 for a, b in itertools.pairwise(NF4)]
    above = [(unit > middle).astype(jnp.uint8) for middle in middles]
    return functools.reduce(jnp.add, above)


def _decode_nf4(codes: Array) -> Array:
    """The table's entry, by four rounds of choices: TPUs look nothing up in a table quickly."""
    level: list[Array] = [jnp.float32(value) for value in NF4]
    for bit in range(4):
        odd = (codes >> bit) & 1 != 0
        level = [jnp.where(odd, b, a) for a, b in zip(level[::2], level[1::2], strict=True)]
    return level[0]


class _Decade(NamedTuple):
    """Numbers 10^(i-6) · (0.1 + 0.9 (j + ½) / numbers) of the dynamic code, from j = 0 on.

    Attributes:
      first: how many numbers above 0 are smaller.
      numbers: how many there are.
      begin: half-way from the last smaller one to the first of these.
      unit: 10^(i-6).
    """

    first: int
    numbers: int
    begin: float
    unit: float

    def number(self, j: int) -> float:
        """The j-th of them."""
        return self.unit * (0.1 + 0.9 * (j + 0.5) / self.numbers)


def _decades(fractions: int) -> list[_Decade]:
    """All of a code that has `fractions` numbers in its smallest decade, and twice that in each."""
    made: list[_Decade] = []
    for i in range(7):
        last = made[-1].number(made[-1].numbers - 1) if made else 0.0
        one = _Decade(fractions * (2**i - 1), fractions * 2**i, 0.0, 10.0 ** (i - 6))
        made.append(one._replace(begin=(last + one.number(0)) / 2))
    return made


def _encode_magnitude(size: Array, fractions: int) -> Array:
    """0 for 0, from 1 on the numbers in their order, the last of which is 1.0; int32."""
    decades = _decades(fractions)
    code = jnp.zeros(size.shape, jnp.int32)
    for one in decades:
        j = jnp.floor((size / one.unit - 0.1) * (one.numbers / 0.9)).astype(jnp.int32)
        here = 1 + one.first + jnp.clip(j, 0, one.numbers - 1)
        code = jnp.where(size > one.begin, here, code)
    top = decades[-1]
    end = (top.number(top.numbers - 1) + 1.0) / 2
    return jnp.where(size > end, 1 + top.first + top.numbers, code)


def _decode_magnitude(code: Array, fractions: int) -> Array:
    """The number of a code of `_encode_magnitude`; float32."""
    decades = _decades(fractions)
    value = jnp.zeros(code.shape, jnp.float32)
    for one in decades:
        j = (code - 1 - one.first).astype(jnp.float32)
        here = one.unit * (0.1 + 0.9 * (j + 0.5) / one.numbers)
        value = jnp.where(code > one.first, here, value)
    return jnp.where(code > decades[-1].first + decades[-1].numbers, 1.0, value)


def _encode_dynamic(unit: Array) -> Array:
    """Negative numbers count down from 127; of them -1.0 has no code."""
    code = _encode_magnitude(jnp.abs(unit), 1)
    return jnp.where(unit < 0, 127 - jnp.minimum(code, 127), 127 + code).astype(jnp.uint8)


def _decode_dynamic(codes: Array) -> Array:
    place = codes.astype(jnp.int32) - 127
    return jnp.sign(place).astype(jnp.float32) * _decode_magnitude(jnp.abs(place), 1)


def _encode_unsigned(unit: Array) -> Array:
    return _encode_magnitude(unit, 2).astype(jnp.uint8)


def _decode_unsigned(codes: Array) -> Array:
    return _decode_magnitude(codes.astype(jnp.int32), 2)


CODECS = {
    "int8": Codec(_encode_int8, _decode_int8),
    "nf4": Codec(_encode_nf4, _decode_nf4, packed=True),
    "dynamic": Codec(_encode_dynamic, _decode_dynamic),
    "dynamic_unsigned": Codec(_encode_unsigned, _decode_unsigned),
}
"""By name. Dynamic: seven decades, the larger the finer (2110.02861, section 1.3), as bitsandbytes
lays them out; for what is never negative a bit more."""
