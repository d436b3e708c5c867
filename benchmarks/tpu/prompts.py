"""A group whose prompt is computed once, against one of whole sequences, by the TPU compiler.

    python -m benchmarks.tpu.prompts

The optimizer step of GRPO on one prompt of 512 tokens with 8 answers of 512, Qwen3-0.6B on one v5e:
rows as `data.prompts_once` packs them and as they are without it. Temporaries are what the forward
and the backward pass need beside parameters, optimizer and batch; flops are the model's, by count,
without those that the backward pass computes again.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from ptjax.plan.environment import no_tpu

GIB = 2**30
PROMPT, ANSWER, ANSWERS = 512, 512, 8
SETTINGS = {
    "model.source": "qwen3-0.6b",
    "model.dtype": "bfloat16",
    "data.max_length": PROMPT,
    "data.batch_size": 1,
    "accumulate": 1,
    "rollout.n": ANSWERS,
    "rollout.max_tokens": ANSWER,
    "data.validation": None,
    "checkpoint.best": None,
}


def group() -> dict[str, np.ndarray]:
    """The columns of one group, its answers as long as can be."""
    shape = (1, ANSWERS, PROMPT + ANSWER)
    valid = np.ones(shape, bool)
    mask = np.ones(shape, np.float32) * (np.arange(shape[2]) >= PROMPT)
    return {"tokens": np.zeros(shape, np.int32), "valid": valid, "mask": mask}


def main() -> None:
    """Prints the table."""
    no_tpu()
    from ptjax import config as configs
    from ptjax import sharding
    from ptjax.data import HostBatch
    from ptjax.data.pack_groups import pack_groups
    from ptjax.data.plan import Blocks
    from ptjax.flops import FlopCounter
    from ptjax.plan.compiled import compile_one
    from ptjax.plan.programs import resident, train
    from ptjax.plan.shapes import job
    from ptjax.plan.topology import topology

    where = topology("v5e:1x1")
    print("| remat | prompts_once | rows | tokens | temporaries, GiB | peak, GiB | TFLOP |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for remat in ("dots_and_attention", "full"):
        for once in (False, True):
            chosen = {"model.remat": remat, "data.prompts_once": once}
            config: Any = configs.load("configs/grpo.py", {**SETTINGS, **chosen})
            mesh = sharding.make_mesh(config.mesh.to_dict(), where.devices)
            made = job(config, mesh)
            columns = group()
            pack = pack_groups(columns, Blocks(1, 1), prompts_once=once, answer=ANSWER)
            made = replace(made, step={**made.step, "pack": pack.shape})
            counter = FlopCounter(made.model, made.rows, made.state, made.bound)
            work = counter.of(HostBatch({**columns, "pack": pack}, [0]), stages=False)
            found = compile_one(train(made), mesh, resident(made), [0])
            memory = found.memory
            temporaries = "refused" if memory is None else f"{memory.temporaries / GIB:.2f}"
            rows, length = pack.shape
            print(
                f"| {remat} | {once} | {rows} x {length:,} | {work.filled:,.0f} | {temporaries} | "
                f"{found.peak / GIB:.2f} | {work.flops / 1e12:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
