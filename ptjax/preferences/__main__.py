"""`python -m ptjax.preferences`: prompts in, pairs of answers out.

A run that was stopped, by Ctrl-C or `kill -9`, goes on when the same command is given again.
"""

from ptjax.config import Flag
from ptjax.errors import run
from ptjax.preferences.command import make, options_of

EXAMPLE = (
    "python -m ptjax.preferences --model=smollm2-135m-instruct --prompts=prompts.jsonl "
    '--out=pairs.jsonl --rewards=\'[{"name": "length", "target": 50}]\''
)
FLAGS = (
    Flag("chosen", "best (of the samples), edited or given (default best)", str, "best"),
    Flag("against", "of best: worst or random (default worst)", str, "worst"),
    Flag("edit", "of edited: dotted path of a function (prompt, completion, **row) -> text"),
    Flag("samples", "answers a prompt (default 4 for best, else 1)", int),
    Flag("margin", "least difference of a pair's scores (default 0)", float, 0.0),
)


def main() -> None:
    """Parses the command line, makes the pairs and says what became of the prompts."""
    options = options_of(
        "python -m ptjax.preferences",
        "Makes preference pairs of a model's own answers.",
        EXAMPLE,
        FLAGS,
    )
    if options.samples is None:
        options.samples = 4 if options.chosen == "best" else 1

    from ptjax.preferences.make import make_pairs
    from ptjax.preferences.settings import Settings

    made = make(make_pairs, Settings, options)
    print("\n".join([*made.lines(), f"written     {options.out}"]))


if __name__ == "__main__":
    run(main)
