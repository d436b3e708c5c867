"""Processor time of one call of attention, whole rows and without tiles that no query sees.

    JAX_PLATFORMS=cpu python -m benchmarks.attention

Rows of 1,024 tokens in which 1, 6 and 20 sequences are packed; heads as SmolLM2-135M has them;
forward and backward, in float32. Whole rows: each block of queries meets all keys of its row, as
`aligned=False` has it. The two are called in turn, and the median of their calls is printed.
"""

import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ptjax.ops.attention import attention
from ptjax.ops.span import Span

ROWS, LENGTH = 4, 1024
HEADS, KV_HEADS, WIDTH = 9, 3, 64
SEQUENCES = (1, 6, 20)
CALLS = 15


def packed(sequences: int) -> Span:
    """Rows of so many sequences of nearly one length, which fill them."""
    edges = np.linspace(0, LENGTH, sequences + 1).astype(int)
    segments = np.searchsorted(edges, np.arange(LENGTH), side="right")
    positions = np.arange(LENGTH) - edges[segments - 1]
    return Span(*(jnp.tile(jnp.asarray(row), (ROWS, 1)) for row in (positions, segments)))


@functools.partial(jax.jit, static_argnames="aligned")
def step(q, k, v, span, *, aligned):
    """Attention's gradients."""

    def total(q, k, v):
        settings = {"scale": WIDTH**-0.5, "aligned": aligned}
        return jnp.sum(attention(q, k, v, span, span, LENGTH, **settings) ** 2)

    return jax.grad(total, argnums=(0, 1, 2))(q, k, v)


def milliseconds(call: Callable[[], object]) -> float:
    """Processor time of a call, over all threads."""
    began = time.process_time()
    jax.block_until_ready(call())
    return 1000 * (time.process_time() - began)


def main() -> None:
    """Prints the table."""
    keys = jax.random.split(jax.random.key(0), 3)
    arrays = [
        jax.random.normal(key, (ROWS, LENGTH, heads, WIDTH))
        for key, heads in zip(keys, (HEADS, KV_HEADS, KV_HEADS), strict=True)
    ]
    print("| sequences a row | whole rows | tiles skipped |\n|---|---|---|")
    for sequences in SEQUENCES:
        span = packed(sequences)
        calls = [
            functools.partial(step, *arrays, span, aligned=aligned) for aligned in (False, True)
        ]
        jax.block_until_ready([call() for call in calls])
        taken = [[milliseconds(call) for call in calls] for _ in range(CALLS)]
        whole, skipped = (statistics.median(times) for times in zip(*taken, strict=True))
        print(f"| {sequences} | {whole:.0f} ms | {skipped:.0f} ms |", flush=True)


if __name__ == "__main__":
    main()
