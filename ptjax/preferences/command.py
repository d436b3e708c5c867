"""What the commands that make files of answers share: their flags, and how they are read."""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ptjax.config import Flag, parse
from ptjax.config.values import read
from ptjax.errors import UserError

FLAGS = (
    Flag("model", "folder, .gguf file, registered name, hub id or workdir", required=True),
    Flag("prompts", "a source of rows with a prompt, or with whole chats", required=True),
    Flag("out", "the JSONL file to make", required=True),
    Flag("rewards", 'names, or a list of {"name": ..., "weight": ..., settings}', str, ""),
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


def options_of(prog: str, description: str, example: str, flags: Sequence[Flag]) -> Any:
    """The command line, read.

    Raises:
      UserError: an argument that is not known, or not what it should be.
    """
    _, options = parse(
        prog=prog,
        flags=(*FLAGS[:3], *flags, *FLAGS[3:]),
        description=description,
        example=example,
        config=False,
    )
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit={options.limit}: at least 1 is expected")
    return options


def make(function: Callable[..., Any], settings: type, options: Any) -> Any:
    """Calls what makes the file; Ctrl-C ends the command with a line.

    Args:
      function: `(model, prompts, out, settings)`.
      settings: the dataclass of its settings.
      options: from `options_of`.
    """
    from ptjax.data.config import SourceConfig
    from ptjax.programs import keep_programs

    keep_programs()
    names = {one.name for one in dataclasses.fields(settings)} - {"rewards"}
    given = {name: getattr(options, name) for name in names}
    source = SourceConfig(options.prompts, split=options.split, limit=options.limit)
    asked = settings(rewards=tuple(_rewards(options.rewards)), **given)
    try:
        return function(options.model, source, options.out, asked)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def _rewards(text: str) -> list[Any]:
    """`length,my_file.kind`, or a list of dicts as JSON or Python writes it."""
    try:
        found = json.loads(text)
    except ValueError:
        found = read(text, list, [], "--rewards")
    return found if isinstance(found, list) else [found]
