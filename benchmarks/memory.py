"""Memory of a train step with the head in chunks and with whole logits, by XLA's own analysis.

    JAX_PLATFORMS=cpu python -m benchmarks.memory

Compiles for one CPU device from shapes alone: nothing is loaded, nothing runs. First whole steps
of SmolLM2-135M, LoRA and full; then by what the backward pass computes again, by micro-batches and
by the head's chunk; then the head by itself, forward and backward, for growing numbers of tokens
and sizes of vocabulary. Temporaries are what a program needs beside its arguments and its results.
"""

import jax
import jax.numpy as jnp

from ptjax import config as configs
from ptjax import sharding
from ptjax.models.compute import REMAT
from ptjax.models.decoder import Decoder
from ptjax.ops.logprobs import token_stats
from ptjax.plan.compiled import compile_one
from ptjax.plan.programs import train
from ptjax.plan.shapes import job

MIB = 2**20
WIDTH = 576
AWAY = ("offload_dots", "minimal")
"""What they keep in the host's memory would count here: a CPU has no other."""
SETTINGS = {
    **{f"remat={policy}": {"remat": policy} for policy in REMAT if policy not in AWAY},
    "accumulate=4, remat=none": {"remat": "none", "accumulate": 4},
    "accumulate=4, remat=full": {"remat": "full", "accumulate": 4},
    **{
        f"head_chunk={chunk}, remat=full": {"remat": "full", "head_chunk": chunk}
        for chunk in (128, 1024, 4096)
    },
}


def naive(hidden, kernel, targets, scored, *, fields, vocab_first=False, **_):
    """`token_stats` with the logits of all tokens at once, as autodiff likes it."""
    out = jnp.einsum("smd,vd->smv" if vocab_first else "smd,dv->smv", hidden, kernel)
    logps = jax.nn.log_softmax(out.astype(jnp.float32))
    picked = jnp.take_along_axis(logps, targets[..., None], axis=-1)[..., 0]
    made = {
        "logps": lambda: picked,
        "correct": lambda: (jnp.argmax(out, axis=-1) == targets).astype(jnp.float32),
        "entropy": lambda: -jnp.sum(jnp.exp(logps) * logps, axis=-1),
        "logsumexp": lambda: jax.nn.logsumexp(out, axis=-1),
    }
    return {name: jnp.where(scored, made[name](), 0) for name in fields}


class Naive(Decoder):
    """A decoder whose head makes all logits."""

    def stats(self, params, hidden, targets, scored, **asked):
        """Statistics of the targets, from logits that exist at once."""
        kernel, vocab_first, _ = self.projection(params)
        return naive(hidden, kernel, targets, scored, vocab_first=vocab_first, **asked)


def step_memory(tokens, length, with_lora, decoder=Decoder, accumulate=1, **model):
    """Temporaries and arguments of one whole step, MiB."""
    config = configs.load("configs/quickstart.py")
    config.data.max_length, config.data.tokens_per_batch = length, tokens
    config.accumulate = accumulate
    config.model.update(model)
    if not with_lora:
        config.lora = None
    mesh = sharding.make_mesh({}, jax.devices()[:1])
    memory = compile_one(train(job(config, mesh, decoder=decoder)), mesh, (), [0]).memory
    return memory.temporaries / MIB, memory.arguments / MIB


def head_memory(tokens, vocab, function):
    """Temporaries of the head's loss and its gradients, MiB."""

    def loss(hidden, kernel, targets, scored):
        linear = scored.astype(jnp.float32)
        stats = function(
            hidden,
            kernel,
            targets,
            scored,
            fields=("logps",),
            vocab_first=True,
            **({"linear": linear} if function is token_stats else {}),
        )
        return -jnp.sum(stats["logps"] * linear)

    shapes = (
        ((1, tokens, WIDTH), jnp.float32),
        ((vocab, WIDTH), jnp.float32),
        ((1, tokens), jnp.int32),
        ((1, tokens), jnp.bool_),
    )
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes / MIB


def main() -> None:
    print("a whole step of SmolLM2-135M, temporaries in MiB (arguments: parameters, state, batch)")
    print(f"{'':28} {'arguments':>9} {'chunked':>9} {'naive':>9}")
    for name, tokens, length, with_lora in (
        ("quickstart, LoRA, 2 x 256", 512, 256, True),
        ("LoRA, 4 x 256", 1024, 256, True),
        ("LoRA, 4 x 1024", 4096, 1024, True),
        ("full, 4 x 256", 1024, 256, False),
        ("full, 4 x 1024", 4096, 1024, False),
    ):
        chunked, arguments = step_memory(tokens, length, with_lora, Decoder)
        whole, _ = step_memory(tokens, length, with_lora, Naive)
        print(f"{name:28} {arguments:9.0f} {chunked:9.0f} {whole:9.0f}", flush=True)
    print("\n4 x 1024, temporaries in MiB")
    print(f"{'':28} {'LoRA':>9} {'full':>9}")
    for name, settings in SETTINGS.items():
        lora, full = (step_memory(4096, 1024, which, **settings)[0] for which in (True, False))
        print(f"{name:28} {lora:9.0f} {full:9.0f}", flush=True)
    print(f"\nthe head alone, hidden and kernel trained, width {WIDTH}, temporaries in MiB")
    print(f"{'tokens':>8} {'vocabulary':>10} {'chunked':>9} {'naive':>9} {'one logits array':>17}")
    for tokens, vocab in (
        (1024, 49152),
        (4096, 49152),
        (16384, 49152),
        (4096, 16384),
        (4096, 131072),
    ):
        chunked, whole = (head_memory(tokens, vocab, one) for one in (token_stats, naive))
        logits = 4 * tokens * vocab / MIB
        print(f"{tokens:8} {vocab:10} {chunked:9.0f} {whole:9.0f} {logits:17.0f}", flush=True)


if __name__ == "__main__":
    main()
