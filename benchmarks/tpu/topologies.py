"""Every program of a GRPO run, compiled for each generation of TPUs and for two slices of each.

    python -m benchmarks.tpu.topologies
    python -m benchmarks.tpu.topologies v6e:2x2,2

Four chips each, parameters over two of them and heads over two; a small Llama, so that a program
takes seconds. All programs are compiled with the kernel that they would run with, and the optimizer
step with tiles, too; and that of a small mixture of experts, its experts over two chips and its
rows cut in two, on one slice. A row says what was compiled; a program that is refused ends the
command with the compiler's message.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from ptjax.plan.environment import no_tpu

CHIPS = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
PLACES = tuple((name, slices) for slices in (1, 2) for name in CHIPS)
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
MIXTURE = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
CUT = {
    "model.dtype": "bfloat16",
    "mesh.expert": 2,
    "mesh.sequence": 2,
    "data.max_length": 512,
    "data.tokens_per_batch": 8192,
    "data.validation": None,
}


def of_a_mixture(source: str, name: str) -> list[Any]:
    """The optimizer step of a mixture of experts, its rows cut."""
    from ptjax import config as configs

    config: Any = configs.load("configs/sft.py", {**CUT, "model.source": source})
    return made_of(config, name, 1, steps_alone=True)


def compiled(source: str, name: str, slices: int, kernel: str) -> list[Any]:
    """The programs of a run on so many slices of a shape, with tiles the optimizer step alone."""
    from ptjax import config as configs

    chosen = {"model.source": source, "model.attention": kernel, "mesh.data": slices}
    config: Any = configs.load("configs/grpo.py", {**SETTINGS, **chosen})
    return made_of(config, name, slices, steps_alone=kernel == "tiles")


def made_of(config: Any, name: str, slices: int, *, steps_alone: bool) -> list[Any]:
    """The programs of a config, or its optimizer step alone."""
    from ptjax import sharding
    from ptjax.plan import programs as planned
    from ptjax.plan.compiled import compile_all
    from ptjax.plan.shapes import job
    from ptjax.plan.topology import topology

    where = topology(name, slices=slices)
    mesh = sharding.make_mesh(config.mesh.to_dict(), where.devices)
    made = job(config, mesh)
    asked = [planned.train(made)] if steps_alone else planned.programs(made)
    return compile_all(asked, mesh, planned.resident(made), where.slices_of(mesh))


def main() -> None:
    """Prints the table, of all places or of those that the arguments name."""
    no_tpu()
    given = [one.partition(",") for one in sys.argv[1:]]
    places = [(name, int(slices or 1)) for name, _, slices in given] or PLACES
    print("| chips | model | attention | programs | seconds |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        dense, mixture = (str(Path(folder) / each) for each in ("dense", "mixture"))
        for source, shape in ((dense, SMALL), (mixture, SMALL | MIXTURE)):
            Path(source).mkdir()
            (Path(source) / "config.json").write_text(json.dumps(shape))
        for name, slices in places:
            several = f" x {slices} slices" if slices > 1 else ""
            for kernel in ("auto", "tiles"):
                found = compiled(dense, name, slices, kernel)
                print(row(f"{name}{several}", "dense", kernel, found), flush=True)
            if slices == 1:
                found = of_a_mixture(mixture, name)
                print(row(name, "mixture, `expert` 2 x `sequence` 2", "auto", found), flush=True)


def row(chips: str, model: str, kernel: str, found: list[Any]) -> str:
    """A row of the table; none of the programs was refused."""
    refused = [one.planned.name for one in found if one.memory is None]
    assert not refused, refused
    names = ", ".join(one.planned.name for one in found)
    took = sum(one.seconds for one in found)
    return f"| {chips} | {model} | {kernel} | {names} | {took:.0f} |"


if __name__ == "__main__":
    main()
