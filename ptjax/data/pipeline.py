"""From `config.data` to batches: encode, select, plan, collate."""

import atexit
import dataclasses
import hashlib
import logging
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from ptjax.data.chat import Chat
from ptjax.data.columns import Collate
from ptjax.data.config import DataConfig, SourceConfig, data_config
from ptjax.data.encode import encode_source
from ptjax.data.examples import Examples
from ptjax.data.iterate import Batches, TrainIterator
from ptjax.data.kinds import Kind, kind_named
from ptjax.data.mismatch import with_mismatched
from ptjax.data.order import Mixture
from ptjax.data.planning import Layout, make_schedule
from ptjax.data.ragged import Ragged
from ptjax.data.report import Report
from ptjax.data.schedule import Schedule
from ptjax.data.select import hold_out, select
from ptjax.data.shortcuts import shortcuts
from ptjax.data.steps import step_labels
from ptjax.errors import UserError
from ptjax.writable import check_folder

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Pipeline:
    """Everything a run reads."""

    config: DataConfig
    kind: Kind
    examples: Examples
    """Those that are trained on."""
    held_out: Examples | None
    report: Report
    layout: Layout
    schedule: Schedule
    validation_schedule: Schedule | None
    own: tuple[int, ...]
    """Shards whose rows this process makes, in order."""
    cache: str
    """Folder of encoded sources, and of what is computed from them."""
    columns: dict[int, dict[str, Ragged]] = dataclasses.field(default_factory=dict)
    """By `id` of the examples, columns of numbers that were computed before."""

    @property
    def share(self) -> float:
        """Of each batch's rows those that this process makes."""
        return len(self.own) / self.layout.blocks.shards

    @property
    def whole(self) -> bool:
        """Whether those are all of them."""
        return self.share == 1

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
        extra = (*self.kind.columns, *self.columns.get(id(self.examples), {}))
        return [
            self.layout.shapes(rows, length, block, width, extra) for rows, length in sorted(found)
        ]

    def once(self, examples: Examples) -> Batches:
        """Batches in which each of these examples, all trained on or all held out, stands once."""
        like = self.schedule if self.validation_schedule is None else self.validation_schedule
        schedule = _once(examples, self.layout, like)
        return Batches(schedule, self._collate(examples))

    def add_columns(self, examples: Examples, columns: dict[str, Ragged]) -> None:
        """Gives every batch of these examples further columns."""
        self.columns[id(examples)] = columns

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
        return Collate(
            stores=[one.sequences.flat for one in examples.encodings],
            source=examples.source,
            pieces=examples.pieces,
            scores=examples.scores,
            margin=examples.margin,
            mismatched=examples.mismatched,
            shared=examples.shared,
            loss_weights=np.array([one.source.loss_weight for one in examples.encodings]),
            row_length=self.layout.row_length,
            shards=self.own,
            extra=self.kind.columns,
            computed=self.columns.get(id(examples), {}),
        )


def build(
    config: Any,
    tokenizer: Any,
    *,
    kind: str = "sequences",
    seed: int,
    shards: int = 1,
    accumulate: int = 1,
    own: Sequence[int] | None = None,
    whole: bool = False,
    cache_dir: str | None = None,
    prompts_once: bool = True,
    quiet: bool = False,
) -> Pipeline:
    """Reads, encodes and plans everything that `config.data` names.

    Args:
      config: `config.data`; see `ptjax.data.config.DataConfig`.
      tokenizer: a fast `transformers` tokenizer.
      kind: what is read of a row and what an example is, one of `ptjax.data.kinds.KINDS`.
      seed: of the order, and of what is held out.
      shards: parts of a batch along its first axis, over all hosts.
      accumulate: micro-batches of an optimizer step.
      own: those whose rows this process makes, in order; None for all. Two processes may make the
        same.
      whole: whether it makes all rows after all: prompts that all answer together.
      cache_dir: folder for encoded sources; None: config.cache, else a temporary one.
      prompts_once: whether the model can share a prompt between completions.
      quiet: whether another process looks for what can be learnt without reading, and says it.

    Raises:
      UserError: anything wrong with the config, the files or their rows.

    """
    config = data_config(config)
    what = kind_named(kind)
    _check_kind(config, what)
    if config.cache:
        check_folder(config.cache, "config.data.cache")
    cache = cache_dir or config.cache or _temporary_folder()
    chat = Chat(tokenizer, config.chat_template, train_on=config.train_on)
    examples, reports = _read(config.sources, config, chat, cache, what)
    held_out, held_reports = None, []
    if isinstance(config.validation, tuple):
        held_out, held_reports = _read(config.validation, config, chat, cache, what)
        width = max(examples.lengths.shape[1], held_out.lengths.shape[1])
        examples, held_out = examples.widened(width), held_out.widened(width)
    elif config.validation is not None:
        examples, held_out = hold_out(examples, config.validation, seed)
    if "kl_tokens" in what.columns:
        examples = with_mismatched(examples, config.max_length)
        held_out = held_out and with_mismatched(held_out, config.max_length)
    once = config.prompts_once and prompts_once and what.one_prompt
    examples = dataclasses.replace(examples, prompts_once=once)
    held_out = held_out and dataclasses.replace(held_out, prompts_once=once)
    layout = Layout.of(config, [examples, held_out], shards=shards, accumulate=accumulate)
    order_seed = seed if config.shuffle else None
    identity = _identity(examples, config, layout.row_length, seed)
    sizes = np.bincount(examples.source, minlength=len(config.sources)).tolist()
    mixture = Mixture.of(sizes, config.sources)
    schedule = make_schedule(examples, mixture, layout, seed=order_seed, identity=identity)
    held_schedule = None
    if held_out is not None:
        held_schedule = _once(held_out, layout, schedule)
        schedule.block = held_schedule.block = max(schedule.block, held_schedule.block)
    stepwise = "labels" in what.columns
    found = None
    if stepwise:
        found = step_labels(examples)
    elif not quiet:
        found = shortcuts(examples, what, tokenizer)
    if found is not None and not quiet:
        for line in found.lines():
            _log.info("without reading the answers: %s", line)
    report = Report.of(reports, held_reports, examples, held_out, layout, schedule, found)
    return Pipeline(
        config,
        what,
        examples,
        held_out,
        report,
        layout,
        schedule,
        held_schedule,
        tuple(range(shards) if whole or own is None else own),
        cache,
    )


def _once(examples: Examples, layout: Layout, like: Schedule) -> Schedule:
    """A schedule in whose first epoch each example stands once, in the files' order."""
    count = len(examples.encodings)
    sizes = np.bincount(examples.source, minlength=count).tolist()
    mixture = Mixture(tuple(sizes), (None,) * count, (1.0,) * count)
    return make_schedule(examples, mixture, layout, seed=None, like=like)


def _temporary_folder() -> str:
    """A folder that is removed when the process ends."""
    folder = tempfile.mkdtemp(prefix="ptjax-data-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _check_kind(config: DataConfig, kind: Kind) -> None:
    """Refuses what makes sense for sequences alone."""
    if not kind.judged:
        return
    if config.truncate == "split":
        raise UserError(
            f"config.data.truncate = 'split': an example of kind {kind.name!r} has no pieces; "
            "use 'end', 'start' or 'drop'"
        )
    if config.train_on == "all":
        raise UserError(
            f"config.data.train_on = 'all': of kind {kind.name!r} completions are trained; "
            "use 'assistant' or 'last'"
        )


def _read(
    sources: tuple[SourceConfig, ...], config: DataConfig, chat: Chat, cache: str, kind: Kind
) -> tuple[Examples, list]:
    encodings = [encode_source(source, config, chat, cache, kind) for source in sources]
    return select(encodings, config, kind)


def _identity(examples: Examples, config: DataConfig, row_length: int, seed: int) -> bytes:
    """What the order of examples and their content depend on, hosts and shards left out."""
    digest = hashlib.sha256(examples.identity())
    for array in (examples.source, examples.row, examples.scores, examples.margin):
        digest.update(np.ascontiguousarray(array).tobytes())
    keys = ("packing", "tokens_per_batch", "row_length", "batch_size", "buckets", "shuffle")
    mixing = [(source.weight, source.epochs) for source in config.sources]
    digest.update(repr([seed, mixing, *(getattr(config, key) for key in keys)]).encode())
    if examples.lengths.shape[1] > 1:
        digest.update(repr([examples.prompts_once, row_length]).encode())
    return digest.digest()
