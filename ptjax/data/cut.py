"""Truncates the sequences of judged examples alike, and leaves out what says nothing."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ptjax.data.config import DataConfig
from ptjax.data.encode import Encodings
from ptjax.data.examples import Examples, SourceReport
from ptjax.data.kinds import LABELLED, Kind
from ptjax.data.pieces import Pieces
from ptjax.data.spread import Sequences
from ptjax.errors import UserError
from ptjax.hosts import exchange

_SAME = "all sides are the same tokens"


class _Table(NamedTuple):
    """A source's sequences by example."""

    firsts: Int[np.ndarray, " E"]
    """The example's first sequence."""
    rows: Int[np.ndarray, " E"]
    there: Bool[np.ndarray, "E N"]
    """False where an example has fewer sequences than others."""
    starts: Int[np.ndarray, "E N"]
    lengths: Int[np.ndarray, "E N"]
    scores: Float[np.ndarray, "E N"]
    prompts: Int[np.ndarray, " E"]


def judged_examples(
    index: int, one: Encodings, config: DataConfig, kind: Kind, report: SourceReport
) -> Examples:
    """A source's examples, and in the report what was cut and left out.

    Args:
      index: the source's number.
      one: the source, encoded.
      config: max_length, truncate and on_empty are read here.
      kind: any but "sequences".
      report: of this source.

    Raises:
      UserError: an example with nothing to train on, unless on_empty is "drop"; one that is too
        long, where truncate is "error".

    """
    sequences = one.sequences
    table = _table(sequences)
    pieces, prompts = _cut(table, config, kind)
    trained = _trained(sequences, table, pieces)
    keep = _kept(one, table, trained, config, kind, report)
    if kind.one_prompt and table.there.shape[1] > 1:
        keep &= _differing(sequences, table, pieces, keep, report, ranked=kind.name == "ranked")
    elif kind.name in LABELLED:
        keep &= _consistent(sequences, table, pieces, keep, report)
    kept = np.flatnonzero(keep)
    cut = (table.lengths - pieces.lengths)[kept]
    report.truncated, report.truncated_tokens = int((cut > 0).sum()), int(cut.sum())
    report.examples, report.tokens = len(kept), int(pieces.lengths[kept].sum())
    report.trained = int(trained[kept].sum())
    return Examples(
        [one],
        source=np.full(len(kept), index, np.int32),
        row=table.rows[kept],
        pieces=pieces.take(kept),
        trained=trained[kept],
        prompts=prompts[kept],
        scores=table.scores[kept],
        margin=sequences.margins[table.firsts[kept]],
    )


def _table(sequences: Sequences) -> _Table:
    firsts = np.flatnonzero(np.diff(sequences.examples, prepend=-1))
    counts = np.diff(np.append(firsts, len(sequences.lengths)))
    nth = np.arange(max(int(counts.max(initial=1)), 1))
    there = nth < counts[:, None]
    which = np.where(there, firsts[:, None] + nth, firsts[:, None])
    starts, lengths, scores = (
        np.where(there, values[which], 0)
        for values in (sequences.starts, sequences.lengths.astype(np.int64), sequences.scores)
    )
    rows, prompts = sequences.rows[firsts], sequences.prompts[firsts].astype(np.int64)
    return _Table(firsts, rows, there, starts, lengths, scores, prompts)


def _cut(table: _Table, config: DataConfig, kind: Kind) -> tuple[Pieces, Int[np.ndarray, " E"]]:
    """The sequences within max_length, and how much of the prompt is left.

    From the start the same part of the prompt is cut from all sides, as much as the longest needs
    and is there; one token of it stays, for the first token of a sequence is never trained. Where
    that does not suffice, the end is cut too. Texts that stand alone keep their last token, which
    says that the text is over.
    """
    starts, lengths, prompts, limit = table.starts, table.lengths, table.prompts, config.max_length
    excess = np.maximum(lengths - limit, 0)
    if not kind.one_prompt:
        kept = lengths - excess
        if config.truncate == "start":
            return Pieces.whole(starts + excess, kept), prompts
        joins = np.where(excess > 0, kept - 1, kept)
        resumes = np.where(excess > 0, starts + lengths - 1, starts + kept)
        return Pieces(starts, kept, joins, resumes), prompts
    if config.truncate == "start":
        off = np.minimum(excess.max(1), np.maximum(prompts - 1, 0))
        prompts = prompts - off
        off = off[:, None] * table.there
        starts, lengths = starts + off, lengths - off
    return Pieces.whole(starts, np.minimum(lengths, limit)), np.minimum(prompts, limit)


def _trained(sequences: Sequences, table: _Table, pieces: Pieces) -> Int[np.ndarray, "E N"]:
    """Trained tokens of every sequence."""
    joins, rest = pieces.joins, pieces.lengths - pieces.joins
    rows = np.repeat(table.rows, joins.shape[1])
    counts = sequences.count_trained(rows, pieces.starts.ravel(), joins.ravel())
    # Where a sequence has a second stretch, it is a trained token.
    return counts.reshape(joins.shape) + rest


def _kept(
    one: Encodings,
    table: _Table,
    trained: np.ndarray,
    config: DataConfig,
    kind: Kind,
    report: SourceReport,
) -> np.ndarray:
    """Which examples are short enough and have something to train on, on all of their sides."""
    long: np.ndarray = np.any(table.lengths > config.max_length, axis=1)
    lacks = trained == 0 if kind.trained else table.lengths == 0
    empty: np.ndarray = np.any(lacks & table.there, axis=1)
    keep = np.ones(len(long), bool)
    if long.any() and config.truncate == "error":
        tokens = int(table.lengths[np.flatnonzero(long)[0]].max())
        raise UserError(
            f"{_where(one, table, long)}: {tokens} tokens, more than config.data.max_length = "
            f"{config.max_length}"
        )
    if long.any() and config.truncate == "end" and not kind.trained:
        raise UserError(
            f"{_where(one, table, long)}: a prompt of more than config.data.max_length = "
            f"{config.max_length} tokens, whose end cannot be cut; set config.data.truncate to "
            "'start' or 'drop', or a larger max_length"
        )
    if config.truncate == "drop":
        keep = ~long
        report.drop("too long", int(long.sum()))
    for reason, found in (
        ("nothing to train on", keep & empty & ~long),
        ("nothing to train on within max_length", keep & empty & long),
    ):
        count = int(np.sum(found))
        if count and config.on_empty == "error":
            raise UserError(
                f"{_where(one, table, found)}: {reason} (max_length = {config.max_length}); "
                f"{count} such; config.data.on_empty = 'drop' counts and drops them"
            )
        report.drop(reason, count)
    return keep & ~empty


def _differing(
    sequences: Sequences,
    table: _Table,
    pieces: Pieces,
    keep: np.ndarray,
    report: SourceReport,
    *,
    ranked: bool,
) -> np.ndarray:
    """Which of the kept examples have sides that differ in tokens, and if ranked in scores."""
    first = pieces.lengths[:, :1]
    candidates = keep & ((pieces.lengths == first) | ~table.there).all(1)
    mine, tokens = sequences.mine(table.rows), sequences.own("tokens")
    alike = np.zeros(len(keep), bool)
    for example in np.flatnonzero(candidates & mine):
        starts = pieces.starts[example, table.there[example]] - sequences.flat.begin
        sides = [tokens[start : start + int(first[example, 0])] for start in starts]
        alike[example] = all(np.array_equal(side, sides[0]) for side in sides[1:])
    alike = exchange.gathered(alike[mine])
    report.drop(_SAME, int(alike.sum()))
    if not ranked:
        return ~alike
    level = ((table.scores == table.scores[:, :1]) | ~table.there).all(1) & keep & ~alike
    report.drop("all sides are judged alike", int(level.sum()))
    return ~(alike | level)


def _consistent(
    sequences: Sequences, table: _Table, pieces: Pieces, keep: np.ndarray, report: SourceReport
) -> np.ndarray:
    """Which of the kept examples are no pair's that is one answer, labelled good and bad."""
    rows, mine, tokens = table.rows, sequences.mine(table.rows), sequences.own("tokens")
    starts, lengths = pieces.starts[:, 0] - sequences.flat.begin, pieces.lengths[:, 0]
    twin = (rows[1:] == rows[:-1]) & (lengths[1:] == lengths[:-1]) & keep[1:] & keep[:-1]
    same = np.zeros(len(keep), bool)
    for good in np.flatnonzero(twin & mine[1:]):
        one, other = (tokens[starts[i] : starts[i] + lengths[i]] for i in (good, good + 1))
        same[good : good + 2] = np.array_equal(one, other)
    same = exchange.gathered(same[mine])
    report.drop(_SAME, int(same.sum()) // 2)
    return ~same


def _where(one: Encodings, table: _Table, found: np.ndarray) -> str:
    """File and line of the first of these examples."""
    return one.rows.where(int(table.rows[np.flatnonzero(found)[0]]))
