"""Writes a model as a folder that any Hugging Face tool loads.

python -m ptjax.export runs/sft runs/sft/export --dtype=bfloat16
"""

import math
from collections.abc import Sequence

from ptjax.config import Flag, parse
from ptjax.errors import UserError, run

FLAGS = (
    Flag("model", "a run's workdir, or any model", positional=True, required=True),
    Flag("out", "the folder: new, empty, or an earlier export", positional=True, required=True),
    Flag("step", "which checkpoint of the run; by default the newest that verifies", type=int),
    Flag("adapter", "only the adapter, as a PEFT folder", type=bool),
    Flag("base", "with --adapter: the hub id or folder of the model it belongs to"),
    Flag("dtype", "float32, bfloat16 or float16; by default as the weights were imported"),
    Flag("max_shard_gb", "a weight file's bound, in 10^9 bytes", type=float, default=5.0),
    Flag("last", "the last step's weights, where the run kept a moving average", type=bool),
)


def main(argv: Sequence[str] | None = None) -> None:
    """The command. Nothing heavy is imported before its arguments are known to be good."""
    _, options = parse(
        argv,
        prog="python -m ptjax.export",
        flags=FLAGS,
        description="Writes a model as a folder that any Hugging Face tool loads.",
        example="python -m ptjax.export runs/sft runs/sft/export --dtype=bfloat16",
        config=False,
    )
    if not 0 < options.max_shard_gb < math.inf:
        raise UserError(f"--max_shard_gb={options.max_shard_gb}: give more than 0")
    if options.base and not options.adapter:
        raise UserError("--base goes with --adapter: a whole model has no base")
    from ptjax.export.writing import export

    done = export(
        options.model,
        options.out,
        kind="adapter" if options.adapter else "merged",
        dtype=options.dtype,
        max_shard_bytes=int(options.max_shard_gb * 10**9),
        step=options.step,
        ema=False if options.last else None,
        base=options.base,
    )
    print(done)


if __name__ == "__main__":
    run(main)
