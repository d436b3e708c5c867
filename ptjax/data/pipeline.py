"""From `config.data` to batches: encode, select, plan, collate."""

import dataclasses
import hashlib
import shutil
import tempfile
import weakref
from typing import Any

import numpy as np

from ptjax.data.chat import Chat
from ptjax.data.columns import Collate
from ptjax.data.config import DataConfig, SourceConfig, data_config
from ptjax.data.encode import encode_source
from ptjax.data.iterate import Batches, TrainIterator
from ptjax.data.order import Mixture
from ptjax.data.planning import Layout, make_schedule
from ptjax.data.report import Report
from ptjax.data.schedule import Schedule
from ptjax.data.select import Examples, hold_out, select
from ptjax.errors import UserError


@dataclasses.dataclass
class Pipeline:
    """Everything a run reads."""

    config: DataConfig
    examples: Examples
    """Those that are trained on."""
    held_out: Examples | None
    report: Report
    layout: Layout
    schedule: Schedule
    validation_schedule: Schedule | None
    process: tuple[int, int]
    """(index, count) of the hosts."""
    folder: Any
    """Keeps a temporary cache alive."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of the first epoch."""
        return self.schedule.epoch_steps[0]

    @property
    def steps(self) -> int | None:
        """Optimizer steps until every source's epochs are over; None: no end."""
        return self.schedule.steps

    @property
    def shapes(self) -> list[dict[str, tuple[int, ...]]]:
        """Global shape of every column, for every batch that can occur."""
        schedules = [self.schedule, self.validation_schedule]
        found = {shape for one in schedules if one is not None for shape in one.shapes}
        width, block = self.examples.lengths.shape[1], self.schedule.block
        return [self.layout.shapes(rows, length, block, width) for rows, length in sorted(found)]

    def train(self) -> TrainIterator:
        """The run's batches, with get_state and set_state."""
        collate = self._collate(self.examples)
        return TrainIterator(self.schedule, collate, workers=self.config.workers)

    def validation(self) -> Batches | None:
        """The held-out batches, in the shapes of the training batches; None where none are."""
        if self.validation_schedule is None or self.held_out is None:
            return None
        return Batches(self.validation_schedule, self._collate(self.held_out))

    def _collate(self, examples: Examples) -> Collate:
        index, count = self.process
        each = self.layout.blocks.shards // count
        return Collate(
            stores=[one.store for one in examples.encodings],
            source=examples.source,
            starts=examples.starts,
            lengths=examples.lengths,
            loss_weights=np.array([one.source.loss_weight for one in examples.encodings]),
            row_length=self.layout.row_length,
            shards=(index * each, (index + 1) * each),
        )


def build(
    config: Any,
    tokenizer: Any,
    *,
    seed: int,
    shards: int = 1,
    accumulate: int = 1,
    process_index: int = 0,
    process_count: int = 1,
    cache_dir: str | None = None,
) -> Pipeline:
    """Reads, encodes and plans everything that `config.data` names.

    Args:
      config: `config.data`; see `ptjax.data.config.DataConfig`.
      tokenizer: a fast `transformers` tokenizer.
      seed: of the order, and of what is held out.
      shards: parts of a batch along its first axis, over all hosts.
      accumulate: micro-batches of an optimizer step.
      process_index: this host.
      process_count: hosts; each gets the rows of its own shards.
      cache_dir: folder for encoded sources; None: config.cache, else a temporary one.

    Raises:
      UserError: anything wrong with the config, the files or their rows.

    """
    config = data_config(config)
    if shards % process_count:
        raise UserError(f"{shards} data shards do not divide over {process_count} processes")
    folder = None
    cache = cache_dir or config.cache
    if cache is None:
        folder = _Scratch()
        cache = folder.path
    chat = Chat(tokenizer, config.chat_template, train_on=config.train_on)
    examples, reports = _read(config.sources, config, chat, cache)
    held_out, held_reports = None, []
    if isinstance(config.validation, tuple):
        held_out, held_reports = _read(config.validation, config, chat, cache)
    elif config.validation is not None:
        examples, held_out = hold_out(examples, config.validation, seed)
    layout = Layout.of(config, [examples, held_out], shards=shards, accumulate=accumulate)
    order_seed = seed if config.shuffle else None
    identity = _identity(examples, config, seed)
    sizes = np.bincount(examples.source, minlength=len(config.sources)).tolist()
    mixture = Mixture.of(sizes, config.sources)
    schedule = make_schedule(examples, mixture, layout, seed=order_seed, identity=identity)
    held_schedule = None
    if held_out is not None:
        count = len(held_out.encodings)
        held_sizes = np.bincount(held_out.source, minlength=count).tolist()
        once = Mixture(tuple(held_sizes), (None,) * count, (1.0,) * count)
        held_schedule = make_schedule(held_out, once, layout, seed=None, like=schedule)
        schedule.block = held_schedule.block = max(schedule.block, held_schedule.block)
    report = Report.of(reports, held_reports, examples, held_out, layout, schedule)
    return Pipeline(
        config,
        examples,
        held_out,
        report,
        layout,
        schedule,
        held_schedule,
        (process_index, process_count),
        folder,
    )


class _Scratch:
    """A temporary folder that is removed with the last reference to it, or when Python ends."""

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix="ptjax-data-")
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _read(
    sources: tuple[SourceConfig, ...], config: DataConfig, chat: Chat, cache: str
) -> tuple[Examples, list]:
    return select([encode_source(source, config, chat, cache) for source in sources], config)


def _identity(examples: Examples, config: DataConfig, seed: int) -> bytes:
    """What the order of examples and their content depend on, hosts and shards left out."""
    digest = hashlib.sha256()
    for array in (examples.source, examples.row, examples.starts, examples.lengths):
        digest.update(np.ascontiguousarray(array).tobytes())
    for one in examples.encodings:
        digest.update(repr(one.store.meta["files"]["tokens"]).encode())
        digest.update(repr(one.store.meta["files"]["mask"]).encode())
    keys = ("packing", "tokens_per_batch", "row_length", "batch_size", "buckets", "shuffle")
    mixing = [(source.weight, source.epochs) for source in config.sources]
    digest.update(repr([seed, mixing, *(getattr(config, key) for key in keys)]).encode())
    return digest.digest()
