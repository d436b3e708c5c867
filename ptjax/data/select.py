"""From encoded sources to the examples that are trained on or held out.

Truncation, drops and the held-out split are decided here, from lengths and masks alone, so that
another max_length needs no new encoding.
"""

import collections
import dataclasses

import numpy as np

from ptjax.data.config import DataConfig
from ptjax.data.cut import judged_examples
from ptjax.data.encode import Encodings
from ptjax.data.examples import Examples, SourceReport, joined, total_drops
from ptjax.data.kinds import Kind
from ptjax.data.pieces import Pieces
from ptjax.errors import UserError


def select(
    encodings: list[Encodings], config: DataConfig, kind: Kind
) -> tuple[Examples, list[SourceReport]]:
    """Truncates, drops, counts.

    Raises:
      UserError: an example with nothing to train on, unless on_empty is "drop"; one that is too
        long, where truncate is "error"; nothing left.

    """
    parts, reports = [], []
    for index, one in enumerate(encodings):
        report = SourceReport(one.source.path, rows=len(one.rows), drops=dict(one.sequences.bad))
        if kind.judged:
            parts.append(judged_examples(index, one, config, kind, report))
        else:
            parts.append(_one_source(index, one, config, report))
        reports.append(report)
    examples = dataclasses.replace(joined(parts), encodings=encodings)
    if not len(examples):
        reasons = total_drops(reports)
        counted = ", ".join(f"{n} x {reason}" for reason, n in reasons.items())
        raise UserError(f"config.data.sources: no example is left ({counted or 'no rows'})")
    return examples, reports


def hold_out(examples: Examples, fraction: float, seed: int) -> tuple[Examples, Examples]:
    """Splits into (trained on, held out) by a hash of each row's content and the seed.

    Alike rows, and all sequences of one row, fall on the same side; adding rows moves none. Where
    rows judge answers the hash is of the prompt: what is held out was asked nowhere in training.

    Raises:
      UserError: one of the two sides would be empty.

    """
    keys = np.zeros(len(examples), np.uint64)
    for index, one in enumerate(examples.encodings):
        mine = examples.source == index
        by_row = dict(zip(one.sequences.rows.tolist(), one.sequences.keys.tolist(), strict=True))
        keys[mine] = [by_row[row] for row in examples.row[mine].tolist()]
    draws = _mix(keys ^ _mix(np.array([seed % 2**64], np.uint64)))
    held = draws < np.uint64(int(fraction * 2**64))
    if not held.any():
        held = draws == draws.min()
    if held.all():
        raise UserError(
            f"config.data.validation = {fraction:g} would hold out all of {len(examples)} "
            f"example(s), {len(np.unique(keys))} of them different; give more rows, a list of "
            "sources to hold out, or None"
        )
    return examples.take(np.flatnonzero(~held)), examples.take(np.flatnonzero(held))


def _one_source(index: int, one: Encodings, config: DataConfig, report: SourceReport) -> Examples:
    """A source's sequences, each an example."""
    sequences, limit = one.sequences, config.max_length
    drops = collections.Counter(report.drops)
    owner = np.arange(len(sequences.lengths))
    starts, lengths = sequences.starts, sequences.lengths.astype(np.int64)
    long = lengths > limit
    report.truncated = int(long.sum())
    if long.any() and config.truncate == "error":
        first = int(np.flatnonzero(long)[0])
        where = one.rows.where(int(sequences.rows[first]))
        raise UserError(
            f"{where}: {lengths[first]} tokens, more than config.data.max_length = {limit}"
        )
    if config.truncate == "split":
        pieces = np.maximum(-(-lengths // limit), 1)
        owner = np.repeat(owner, pieces)
        nth = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        starts, lengths = (
            starts[owner] + nth * limit,
            np.minimum(lengths[owner] - nth * limit, limit),
        )
    elif config.truncate == "drop":
        drops["too long"] += report.truncated
        report.truncated = 0
        owner = np.flatnonzero(~long)
        starts, lengths = starts[owner], lengths[owner]
    else:
        report.truncated_tokens = int((lengths - limit)[long].sum())
        if config.truncate == "start":
            starts = starts + np.maximum(lengths - limit, 0)
        lengths = np.minimum(lengths, limit)
    trained = sequences.count_trained(sequences.rows[owner], starts, lengths)
    keep = trained > 0
    _explain_empty(one, config, drops, owner, keep)
    report.drops = {reason: n for reason, n in drops.items() if n}
    owner, starts, lengths, trained = owner[keep], starts[keep], lengths[keep], trained[keep]
    report.examples, report.tokens = len(owner), int(lengths.sum())
    report.trained = int(trained.sum())
    count = len(owner)
    return Examples(
        [one],
        source=np.full(count, index, np.int32),
        row=sequences.rows[owner],
        pieces=Pieces.whole(starts[:, None], lengths[:, None]),
        trained=trained[:, None],
        prompts=sequences.prompts[owner].astype(np.int64),
        scores=np.zeros((count, 1), np.float32),
        margin=np.zeros(count, np.float32),
    )


def _explain_empty(
    one: Encodings,
    config: DataConfig,
    drops: collections.Counter,
    owner: np.ndarray,
    keep: np.ndarray,
) -> None:
    """Counts sequences with nothing to train on by why that is, or stops at the first."""
    sequences = one.sequences
    cut = sequences.lengths[owner] > config.max_length
    kept_owners = np.zeros(len(sequences.lengths), bool)
    kept_owners[owner[keep]] = True
    for reason, which in {
        "nothing to train on": ~keep & ~cut,
        "nothing to train on within max_length": ~keep & cut & ~kept_owners[owner],
    }.items():
        found = np.unique(owner[which])
        if len(found) and config.on_empty == "error":
            where = one.rows.where(int(sequences.rows[found[0]]))
            raise UserError(
                f"{where}: {reason} (train_on = {config.train_on!r}, max_length = "
                f"{config.max_length}); {len(found)} such; config.data.on_empty = 'drop' counts "
                "and drops them"
            )
        drops[reason] += len(found)
    part = int((~keep & cut & kept_owners[owner]).sum())
    drops["piece with nothing to train on"] += part


def _mix(values: np.ndarray) -> np.ndarray:
    """splitmix64: a well-spread 64-bit hash."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
