"""From logits to a token: pure functions over [R, V], one random stream a row.

Shapes: R rows, V vocabulary.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt32

Scalar = Float[Array, ""] | float
Count = Int[Array, ""] | int
Logits = Float[Array, "R V"]


class Sampling(NamedTuple):
    """How a token is drawn; None leaves a step out. Numbers may be traced, so that none recompiles.

    Attributes:
      temperature: divides the logits; None takes the likeliest token.
      top_k: keep the k likeliest tokens.
      top_p: keep the likeliest tokens whose probabilities reach p together (1904.09751).
      min_p: keep tokens at least p times as likely as the likeliest (2407.01082).
    """

    temperature: Scalar | None = None
    top_k: Count | None = None
    top_p: Scalar | None = None
    min_p: Scalar | None = None


def draw(
    logits: Logits, keys: Key[Array, " R"] | None, sampling: Sampling
) -> tuple[Int[Array, " R"], Float[Array, " R"]]:
    """One token a row, and its log-probability.

    Filters apply in the order temperature, top-k, top-p, min-p, each to what the former left. The
    log-probability is that of the whole softmax(logits / temperature), whatever was filtered: the
    trainer's. Greedy tokens have that of temperature 1.

    Args:
      logits: float32.
      keys: randomness of each row; None where nothing is random.
      sampling: temperature and filters.
    """
    if sampling.temperature is None or keys is None:
        tokens = jnp.argmax(logits, axis=-1)
    else:
        logits = logits / sampling.temperature
        uniform = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
        tokens = _at_random(keep(logits, sampling), uniform)
    return tokens, log_prob(logits, tokens)


def _at_random(logits: Logits, uniform: Float[Array, "R 2"]) -> Int[Array, " R"]:
    """A token with the probability that softmax(logits) gives it.

    First one of some √V blocks of tokens by the sum of its probabilities, then a token of it, each
    where a number on [0, 1) falls into the running sum: two random numbers, where noise on every
    logit (Gumbel's) would take V, and no sum of more than a block.
    """
    rows, size = logits.shape
    width = math.isqrt(size - 1) + 1
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    blocks = jnp.pad(weights, ((0, 0), (0, -size % width))).reshape(rows, -1, width)
    block = _falls(jnp.sum(blocks, axis=-1), uniform[:, 0])
    here = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * width + _falls(here, uniform[:, 1])


def _falls(weights: Float[Array, "R W"], uniform: Float[Array, " R"]) -> Int[Array, " R"]:
    """Where a share of the weights' sum falls; never on a weight of 0, whatever rounding does."""
    sums = jnp.cumsum(weights, axis=-1)
    at = jnp.sum(sums <= uniform[:, None] * sums[:, -1:], axis=-1)
    last = weights.shape[-1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)
    return jnp.minimum(at, last)


def log_prob(logits: Logits, tokens: Int[Array, " R"]) -> Float[Array, " R"]:
    """log softmax(logits) at the tokens."""
    picked = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return picked - jax.nn.logsumexp(logits, axis=-1)


def keep(logits: Logits, sampling: Sampling) -> Logits:
    """The logits with -inf at tokens that a filter removes; temperature is not applied here."""
    if sampling.top_k is not None:
        logits = top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = top_p(logits, sampling.top_p)
    if sampling.min_p is not None:
        logits = min_p(logits, sampling.min_p)
    return logits


def top_k(logits: Logits, k: Count) -> Logits:
    """Keeps the k largest; those equal to the smallest kept stay too."""
    return _heaviest(logits, jnp.ones_like(logits), jnp.asarray(k, jnp.float32))


def top_p(logits: Logits, p: Scalar) -> Logits:
    """Keeps the smallest set of largest with probability p; ties with its smallest stay too."""
    return _heaviest(logits, jax.nn.softmax(logits, axis=-1), jnp.asarray(p, jnp.float32))


def min_p(logits: Logits, p: Scalar) -> Logits:
    """Keeps tokens whose probability is at least p times the largest."""
    floor = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(p)
    return jnp.where(logits >= floor, logits, -jnp.inf)


def _heaviest(logits: Logits, weights: Logits, target: Scalar) -> Logits:
    """Keeps the largest logits down to where their weights' sum reaches the target; all if never.

    The threshold is found bit by bit, 32 sums instead of a sort.
    """
    ranks = _ranks(logits)

    def settle(i: Array, threshold: UInt32[Array, "R 1"]) -> UInt32[Array, "R 1"]:
        raised = threshold | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        reached = jnp.sum(jnp.where(ranks >= raised, weights, 0), axis=-1, keepdims=True)
        return jnp.where(reached >= target, raised, threshold)

    threshold = jax.lax.fori_loop(0, 32, settle, jnp.zeros((len(logits), 1), jnp.uint32))
    return jnp.where(ranks >= threshold, logits, -jnp.inf)


def _ranks(x: Logits) -> UInt32[Array, "R V"]:
    """Unsigned integers in the order of the floats, -0 as 0: sign bit flipped, below 0 all bits."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
