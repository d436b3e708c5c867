"""Every program of a GRPO run, compiled for each generation of TPUs and for two slices.

    python -m benchmarks.tpu.topologies

Four chips each, parameters over two of them and heads over two; a small Llama, so that a program
takes seconds. All programs are compiled with the kernel that they would run with, and the optimizer
step with tiles, too. A row says what was compiled; a program that is refused ends the command with
the compiler's message.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from ptjax.plan.environment import no_tpu

PLACES = (
    ("v4:2x2x1", 1),
    ("v5e:2x2", 1),
    ("v5p:2x2x1", 1),
    ("v6e:2x2", 1),
    ("tpu7x:2x2x1", 1),
    ("v5e:2x2", 2),
    ("v5p:2x2x1", 2),
)
SMALL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32_000,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
}
SETTINGS = {
    "model.dtype": "bfloat16",
    "mesh.tensor": 2,
    "data.max_length": 256,
    "data.batch_size": 32,
    "accumulate": 2,
    "rollout.n": 4,
    "rollout.max_tokens": 256,
    "rollout.rows": 32,
    "rollout.minibatches": 2,
    "hparams.beta": 0.04,
}


def compiled(source: str, name: str, slices: int, kernel: str) -> list[Any]:
    """The programs of a run on so many slices of a shape, with tiles the optimizer step alone."""
    from ptjax import config as configs
    from ptjax import sharding
    from ptjax.plan import programs as planned
    from ptjax.plan.compiled import compile_all
    from ptjax.plan.shapes import job
    from ptjax.plan.topology import topology

    where = topology(name, slices=slices)
    chosen = {"model.source": source, "model.attention": kernel, "mesh.data": slices}
    config: Any = configs.load("configs/grpo.py", {**SETTINGS, **chosen})
    mesh = sharding.make_mesh(config.mesh.to_dict(), where.devices)
    made = job(config, mesh)
    asked = [planned.train(made)] if kernel == "tiles" else planned.programs(made)
    return compile_all(asked, mesh, planned.resident(made), where.slices_of(mesh))


def main() -> None:
    """Prints the table."""
    no_tpu()
    print("| chips | attention | programs | seconds |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as source:
        (Path(source) / "config.json").write_text(json.dumps(SMALL))
        for name, slices in PLACES:
            for kernel in ("auto", "tiles"):
                found = compiled(source, name, slices, kernel)
                refused = [one.planned.name for one in found if one.memory is None]
                assert not refused, refused
                names = ", ".join(one.planned.name for one in found)
                several = f" x {slices} slices" if slices > 1 else ""
                took = sum(one.seconds for one in found)
                print(f"| {name}{several} | {kernel} | {names} | {took:.0f} |", flush=True)


if __name__ == "__main__":
    main()
