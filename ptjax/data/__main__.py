"""`python -m ptjax.data --config=configs/quickstart.py`: what the model will be trained on."""

import math
from collections.abc import Mapping

from ptjax.errors import UserError, run


def main(argv: list[str] | None = None) -> None:
    """Builds the config's data pipeline and prints what is in it.

    Raises:
      UserError: anything wrong with the command line, the config or the data.

    """
    from ptjax.config import Flag, parse

    config, flags = parse(
        argv,
        prog="python -m ptjax.data",
        flags=[Flag("examples", "how many examples to print", type=int, default=3)],
        description="Prints examples with tokens coloured by mask, lengths, packing and drops.",
        example="python -m ptjax.data --config=configs/quickstart.py",
    )
    if flags.examples < 0:
        raise UserError(f"--examples={flags.examples}: it cannot be negative")
    values = config.to_dict()
    source = (values.get("model") or {}).get("source")
    if not values.get("data") or not source:
        raise UserError("the config needs data and model.source (whose tokenizer is used)")

    from ptjax.algorithms import METHODS
    from ptjax.algorithms.base import named
    from ptjax.data.pipeline import build
    from ptjax.data.show import show
    from ptjax.workdir import source_tokenizer

    tokenizer = source_tokenizer(
        source,
        chat_template=values["data"].get("chat_template"),
        special_tokens=tuple(values["model"].get("special_tokens") or ()),
    )
    pipeline = build(
        values["data"],
        tokenizer,
        kind=named(values.get("method") or "sft", METHODS).data,
        seed=values.get("seed") or 0,
        shards=_shards(values.get("mesh") or {}),
        accumulate=values.get("accumulate") or 1,
    )
    show(pipeline, tokenizer, examples=flags.examples)


def _shards(sizes: Mapping[str, int]) -> int:
    """Batch shards of the config's mesh; the devices are asked for only where it has a -1."""
    from ptjax.sharding import BATCH, batch_shards, make_mesh

    if -1 in sizes.values():
        return batch_shards(make_mesh(sizes))
    return math.prod(int(sizes.get(axis, 1)) for axis in BATCH)


if __name__ == "__main__":
    run(main)
