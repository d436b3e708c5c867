"""`python -m ptjax.preferences`: prompts in, pairs of answers out.

A run that was stopped, by Ctrl-C or `kill -9`, goes on when the same command is given again.
"""

import dataclasses
import json
import sys
from typing import Any

from ptjax.config import Flag, parse
from ptjax.config.values import read
from ptjax.errors import UserError, run

EXAMPLE = (
    "python -m ptjax.preferences --model=smollm2-135m-instruct --prompts=prompts.jsonl "
    '--out=pairs.jsonl --rewards=\'[{"name": "length", "target": 50}]\''
)
FLAGS = (
    Flag("model", "folder, .gguf file, registered name, hub id or workdir", required=True),
    Flag("prompts", "a source of rows with a prompt, or with whole chats", required=True),
    Flag("out", "the JSONL file to make", required=True),
    Flag("chosen", "best (of the samples), edited or given (default best)", str, "best"),
    Flag("against", "of best: worst or random (default worst)", str, "worst"),
    Flag("rewards", 'names, or a list of {"name": ..., "weight": ..., settings}', str, ""),
    Flag("edit", "of edited: dotted path of a function (prompt, completion, **row) -> text"),
    Flag("samples", "answers a prompt (default 4 for best, else 1)", int),
    Flag("margin", "least difference of a pair's scores (default 0)", float, 0.0),
    Flag("max_missing", "share of answers that may fail to be judged (default 0.5)", float, 0.5),
    Flag("keep_unfinished", "keep answers that ran out of tokens", bool),
    Flag("limit", "take only so many prompts", int),
    Flag("split", "of a hub data set", str),
    Flag("batch_size", "prompts that are answered together (default 8)", int, 8),
    Flag("seed", "of samples and random choices (default 0)", int, 0),
    Flag("max_tokens", "of an answer (default 256)", int, 256),
    Flag("temperature", "of sampling (default 1)", float, 1.0),
    Flag("top_p", "keep the likeliest tokens of this total probability", float),
    Flag("top_k", "keep this many tokens", int),
    Flag("min_p", "keep tokens this likely relative to the likeliest", float),
    Flag("dtype", "of the computation: float32 or bfloat16 (default float32)", str, "float32"),
)


def main() -> None:
    """Parses the command line, makes the pairs and says what became of the prompts."""
    _, options = parse(
        prog="python -m ptjax.preferences",
        flags=FLAGS,
        description="Makes preference pairs of a model's own answers.",
        example=EXAMPLE,
        config=False,
    )
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit={options.limit}: at least 1 is expected")
    if options.samples is None:
        options.samples = 4 if options.chosen == "best" else 1

    from ptjax.data.config import SourceConfig
    from ptjax.preferences.make import make_pairs
    from ptjax.preferences.settings import Settings
    from ptjax.programs import keep_programs

    keep_programs()

    names = {one.name for one in dataclasses.fields(Settings)} - {"rewards"}
    given = {name: getattr(options, name) for name in names}
    settings = Settings(rewards=tuple(_rewards(options.rewards)), **given)
    source = SourceConfig(options.prompts, split=options.split, limit=options.limit)
    try:
        made = make_pairs(options.model, source, options.out, settings)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    print("\n".join([*made.lines(), f"written     {options.out}"]))


def _rewards(text: str) -> list[Any]:
    """`length,my_file.kind`, or a list of dicts as JSON or Python writes it."""
    try:
        found = json.loads(text)
    except ValueError:
        found = read(text, list, [], "--rewards")
    return found if isinstance(found, list) else [found]


if __name__ == "__main__":
    run(main)
