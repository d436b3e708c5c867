"""Plans that the documentation has figures of, beside those of `benchmarks.tpu.facts`.

    python -m benchmarks.tpu.figures
    python -m benchmarks.tpu.figures rows rows_cut
    python -m benchmarks.tpu.figures h100  # where jax's plugin for GPUs is, and not otherwise

Prints of each the command, the page's first lines and what each program takes.
"""

from benchmarks.tpu.facts import ANSWERS, BATCH, LLAMA, Fact, main

SMALL = (
    "--config.model.source=qwen3-0.6b",
    "--config.model.dtype=bfloat16",
    "--config.data.validation=None",
)
LONG = (
    "--config=configs/sft.py",
    "--topology=v5e:2x4",
    *SMALL,
    "--config.model.remat=full",
    "--config.data.max_length=32768",
    "--config.data.row_length=32768",
)
WRITING = (
    "--config=configs/grpo.py",
    "--topology=v5e:1x1",
    *SMALL,
    "--config.checkpoint.best=None",
    *ANSWERS,
    "--config.data.batch_size=16",
)
EXPERTS = (
    "--config=configs/sft.py",
    "--topology=v5p:2x2x4",
    "--config.model.source=qwen3-30b-a3b",
    "--config.model.dtype=bfloat16",
    "--config.model.remat=full",
    "--config.data.max_length=2048",
    f"{BATCH}=65536",
    "--config.data.validation=None",
)
ROWS = (
    "--config=configs/sft.py",
    "--topology=v5e:1x1",
    *SMALL,
    "--config.model.remat=full",
    "--config.data.max_length=8192",
    f"{BATCH}=8192",
)
FIGURES = {
    "splash": Fact("a row of 8,192 tokens, attention by its kernel", ROWS),
    "tiles": Fact("the same without the kernel", (*ROWS, "--config.model.attention=tiles")),
    "rows": Fact("rows of 32,768 tokens, one a device", (*LONG, f"{BATCH}=262144")),
    "rows_cut": Fact(
        "a row of 32,768 tokens over eight devices",
        (*LONG, f"{BATCH}=32768", "--config.mesh.sequence=8"),
    ),
    "decode": Fact("64 rows of answers", (*WRITING, "--config.rollout.rows=64")),
    "decode_tiles": Fact(
        "the same without the kernel",
        (*WRITING, "--config.rollout.rows=64", "--config.model.attention=tiles"),
    ),
    "decode_few": Fact("16 rows of answers", (*WRITING, "--config.rollout.rows=16")),
    "decode_few_tiles": Fact(
        "the same without the kernel",
        (*WRITING, "--config.rollout.rows=16", "--config.model.attention=tiles"),
    ),
    "experts": Fact("a mixture, its experts over eight", (*EXPERTS, "--config.mesh.expert=8")),
    "experts_gathered": Fact("a mixture, its experts gathered", EXPERTS),
    "search": Fact(
        "what fits of a long context, by --search",
        (
            "--config=configs/sft.py",
            "--topology=v5e:2x2",
            "--config.model.source=qwen3-1.7b",
            "--config.model.dtype=bfloat16",
            "--config.data.validation=None",
            "--config.data.max_length=8192",
            f"{BATCH}=65536",
            "--search",
        ),
    ),
}
GPUS = {
    "h100": Fact(
        "8B, all parameters, on eight GPUs",
        (
            "--config=configs/sft.py",
            "--topology=h100:8",
            *LLAMA,
            "--config.model.remat=full",
            "--config.data.max_length=4096",
            f"{BATCH}=65536",
            "--config.data.validation=None",
        ),
    ),
}

if __name__ == "__main__":
    main(FIGURES, GPUS)
