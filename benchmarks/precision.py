"""What precision and offloading save of a TPU's memory, by its compiler.

    python -m benchmarks.precision adapters
    python -m benchmarks.precision full

Compiles one optimizer step for a v5e chip that need not be there, from shapes alone (libtpu is
needed: docs/plan.md). `adapters`: LoRA on Llama 3.1 8B, its base kept in several ways. `full`:
Qwen3 0.6B, its parameters, moments and activations.
"""

import sys
from typing import Any

from ptjax.plan.environment import no_tpu

no_tpu()
GIB = 2**30
COMMON = {
    "data.sources[0].path": "any.jsonl",
    "data.validation": None,
    "data.max_length": 1024,
    "model.dtype": "bfloat16",
}
NARROW = {"model.param_dtype": "bfloat16"}
CASES = {
    "adapters": (
        "configs/sft.py:lora",
        {"model.source": "llama3.1-8b", "data.tokens_per_batch": 1024, "model.remat": "full"},
        {
            "base in bfloat16": NARROW,
            "base in int8": {"model.base": "int8", **NARROW},
            "base in NF4": {"model.base": "nf4", **NARROW},
            "base in bfloat16, on the host": {"model.offload": True, **NARROW},
        },
    ),
    "full": (
        "configs/sft.py",
        {"model.source": "qwen3-0.6b", "data.tokens_per_batch": 4096},
        {
            "float32 parameters": {},
            "float32, moments in 8 bits": {"optim.state_bits": 8},
            "float32, moments on the host": {"optim.offload": True},
            "bfloat16 parameters": NARROW,
            "bfloat16, stochastic": {"optim.rounding": "stochastic", **NARROW},
            "bfloat16, kahan": {"optim.rounding": "kahan", **NARROW},
            "bfloat16, kahan, moments in 8 bits": {
                "optim.rounding": "kahan",
                "optim.state_bits": 8,
                **NARROW,
            },
            "bfloat16, remat=offload_dots": {"model.remat": "offload_dots", **NARROW},
            "bfloat16, remat=full": {"model.remat": "full", **NARROW},
        },
    ),
}


def main() -> None:
    """Prints a table of the cases that the argument names."""
    from ptjax import config as configs
    from ptjax import sharding
    from ptjax.plan.compiled import compile_one
    from ptjax.plan.programs import train
    from ptjax.plan.shapes import job
    from ptjax.plan.topology import topology

    where = topology("v5e:1x1")
    path, given, cases = CASES[sys.argv[1]]
    source, tokens = given["model.source"], given["data.tokens_per_batch"]
    print(f"\n{source}, {path}, {tokens} tokens in rows of 1024, one v5e; GiB")
    print(
        f"{'':36} {'arguments':>9} {'temporaries':>11} {'peak':>6} {'on the host':>11}", flush=True
    )
    for name, changes in cases.items():
        config: Any = configs.load(path, {**COMMON, **given, **changes})
        mesh = sharding.make_mesh(config.mesh.to_dict(), where.devices)
        found = compile_one(train(job(config, mesh)), mesh, (), [0])
        if found.memory is None:
            print(f"{name:36} {'refused':>9} {'':11} {found.peak / GIB:6.2f}", flush=True)
            continue
        memory = found.memory
        print(
            f"{name:36} {memory.arguments / GIB:9.2f} {memory.temporaries / GIB:11.2f} "
            f"{found.peak / GIB:6.2f} {memory.host / GIB:11.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
