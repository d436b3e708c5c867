"""`python -m ptjax.data --config=configs/sft.py`: what the model will be trained on."""

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
        example="python -m ptjax.data --config=configs/sft.py",
    )
    values = config.to_dict()
    source = (values.get("model") or {}).get("source")
    if not values.get("data") or not source:
        raise UserError("the config needs data and model.source (whose tokenizer is used)")

    from ptjax.data.pipeline import build
    from ptjax.data.show import show
    from ptjax.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(source)
    pipeline = build(values["data"], tokenizer, seed=values.get("seed") or 0)
    show(pipeline, tokenizer, examples=flags.examples)


if __name__ == "__main__":
    run(main)
