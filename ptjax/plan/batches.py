"""The largest batch that a config allows, from the config alone: no data are read.

Where data decide, they are taken to be of one kind: each step has an example that is as long as
`data.max_length` allows, and packed rows hold `SEQUENCES` sequences each.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ptjax.config import Config
from ptjax.data.config import DataConfig, data_config
from ptjax.data.examples import Examples
from ptjax.data.kinds import Kind, kind_named
from ptjax.data.order import Mixture
from ptjax.data.pieces import Pieces
from ptjax.data.planning import Layout, make_schedule
from ptjax.errors import UserError

SEQUENCES = 16
"""Of a row of `data.max_length` tokens: sequences that share it."""
WIDTH = {"pairs": 2, "ranked": 4, "contrastive": 2}
"""Sequences of an example, by kind; 1 of all others."""

Shapes = dict[str, tuple[int, ...]]


class Columns(NamedTuple):
    """The columns that data give a step.

    Attributes:
      shapes: global shapes, by name.
      longest: tokens of the longest sequence.
      prompts_once: whether packed rows may hold an example's prompt once.
    """

    shapes: Shapes
    longest: int
    prompts_once: bool


def columns(config: Config, kind: str, *, shards: int) -> Columns:
    """The largest columns of a step.

    Args:
      config: the whole config.
      kind: of its method's data.
      shards: of a batch.

    Raises:
      UserError: `config.data` is wrong, or its batch does not divide over shards and micro-batches.
    """
    asked, what = settings(config), kind_named(kind)
    if what.judged and asked.truncate == "split":
        raise UserError(f"config.data.truncate = 'split': kind {kind!r} has no pieces")
    examples = _examples(asked, what)
    accumulate = config.accumulate
    layout = Layout.of(asked, [examples], shards=shards, accumulate=accumulate)
    mixture = Mixture((len(examples),), (None,), (None,))
    schedule = make_schedule(examples, mixture, layout, seed=None)
    rows, length = max(schedule.shapes)
    width = examples.lengths.shape[1]
    shapes = layout.shapes(rows, length, schedule.block, width, what.columns)
    return Columns(shapes, int(examples.longest.max()), examples.prompts_once)


def settings(config: Config) -> DataConfig:
    """`config.data`, whose paths may be missing.

    Raises:
      UserError: it is wrong otherwise.
    """
    given = config.data.to_dict()
    sources = given["sources"] or "data"
    listed = [sources] if isinstance(sources, str | Mapping) else sources
    return data_config({**given, "sources": list(map(_found, listed))})


def _found(source: Any) -> Any:
    """A source that has a path, whatever it is: nothing is read."""
    given = source.to_dict() if hasattr(source, "to_dict") else source
    if isinstance(given, Mapping) and not given.get("path"):
        return {**given, "path": "data"}
    return given


def _examples(config: DataConfig, kind: Kind) -> Examples:
    """Examples that fill a few steps: one in so many is as long as can be."""
    width = WIDTH.get(kind.name, 1)
    usual = max(2, config.max_length // SEQUENCES)
    if config.batch_size is not None:
        count, every = 2 * config.batch_size, 1
    else:
        tokens = config.tokens_per_batch or 0
        count = max(2, 2 * tokens // (usual * width))
        every = count
    lengths = np.full((count, width), usual, np.int64)
    lengths[::every] = config.max_length
    pieces = Pieces.whole(np.zeros_like(lengths), lengths)
    one_each = np.zeros(count, np.int64)
    return Examples(
        encodings=[],
        source=one_each,
        row=np.arange(count),
        pieces=pieces,
        trained=lengths - 1,
        prompts=one_each,
        scores=np.zeros(lengths.shape),
        margin=np.zeros(count),
        prompts_once=config.prompts_once and kind.one_prompt,
        mismatched=pieces if "kl_tokens" in kind.columns else None,
    )


def places(shapes: Shapes) -> int:
    """Token places of the rows that a model runs on."""
    return math.prod(shapes.get("pack", shapes["tokens"]))
