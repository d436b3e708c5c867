"""Truncates the sequences of judged examples alike, and leaves out what says nothing."""

import numpy as np
from jaxtyping import Int

from ptjax.data.config import DataConfig
from ptjax.data.encode import Encodings
from ptjax.data.examples import Examples, SourceReport, count_trained
from ptjax.data.kinds import Kind
from ptjax.data.pieces import Pieces
from ptjax.data.store import Store
from ptjax.errors import UserError


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
    store = one.store
    firsts = np.flatnonzero(np.diff(store.examples, prepend=-1))
    counts = np.diff(np.append(firsts, len(store.lengths)))
    nth = np.arange(max(int(counts.max(initial=1)), 1))
    there = nth < counts[:, None]
    which = np.where(there, firsts[:, None] + nth, 0)
    lengths = np.where(there, store.lengths.astype(np.int64)[which] if len(which) else 0, 0)
    starts = np.where(there, store.starts[which] if len(which) else 0, 0)
    prompts = store.prompts[firsts].astype(np.int64)
    long = lengths > config.max_length
    pieces, prompts = _cut(starts, lengths, prompts, config, kind)
    trained = _trained(store, pieces)
    keep = np.ones(len(firsts), bool)

    def leave_out(reason: str, found: np.ndarray) -> None:
        report.drop(reason, int((found & keep).sum()))
        keep[found] = False

    def where(found: np.ndarray) -> str:
        return one.rows.where(int(store.rows[firsts[np.flatnonzero(found)[0]]]))

    too_long = long.any(1)
    if too_long.any() and config.truncate == "error":
        most = lengths[np.flatnonzero(too_long)[0]].max()
        raise UserError(
            f"{where(too_long)}: {most} tokens, more than config.data.max_length = "
            f"{config.max_length}"
        )
    if config.truncate == "drop":
        leave_out("too long", too_long)
    empty = ((trained == 0) & there).any(1)
    for reason, found in {
        "nothing to train on": empty & ~too_long,
        "nothing to train on within max_length": empty & too_long,
    }.items():
        found = found & keep
        if found.any() and config.on_empty == "error":
            raise UserError(
                f"{where(found)}: {reason} (on one side at least; max_length = "
                f"{config.max_length}); {int(found.sum())} such; config.data.on_empty = 'drop' "
                "counts and drops them"
            )
        leave_out(reason, found)
    scores = np.where(there, store.scores[which] if len(which) else 0, 0).astype(np.float32)
    if kind.one_prompt and len(nth) > 1:
        leave_out("all sides are the same tokens", _alike(store, pieces, counts, keep))
        levels = np.where(there, scores, scores[:, :1])
        leave_out("all sides are judged alike", (levels == levels[:, :1]).all(1))
    cut = (lengths - pieces.lengths)[keep]
    report.truncated, report.truncated_tokens = int((cut > 0).sum()), int(cut.sum())
    report.examples, report.tokens = int(keep.sum()), int(pieces.lengths[keep].sum())
    report.trained = int(trained[keep].sum())
    kept = np.flatnonzero(keep)
    return Examples(
        [one],
        source=np.full(len(kept), index, np.int32),
        row=store.rows[firsts[kept]],
        pieces=pieces.take(kept),
        trained=trained[kept],
        prompts=prompts[kept],
        scores=scores[kept],
        margin=store.margins[firsts[kept]],
    )


def _cut(
    starts: Int[np.ndarray, "E N"],
    lengths: Int[np.ndarray, "E N"],
    prompts: Int[np.ndarray, " E"],
    config: DataConfig,
    kind: Kind,
) -> tuple[Pieces, Int[np.ndarray, " E"]]:
    """The sequences within max_length, and how much of the prompt is left.

    From the start the same part of the prompt is cut from all sides, as much as the longest needs
    and is there; one token of it stays, for the first token of a sequence is never trained. Where
    that does not suffice, the end is cut too. Texts that stand alone keep their last token, which
    says that the text is over.
    """
    limit = config.max_length
    excess = np.maximum(lengths - limit, 0)
    if not kind.one_prompt:
        kept = lengths - excess
        if config.truncate == "start":
            return Pieces.whole(starts + excess, kept), prompts
        joins = np.where(excess > 0, kept - 1, kept)
        return Pieces(starts, kept, joins, starts + lengths - 1 + (excess == 0)), prompts
    if config.truncate == "start":
        off = np.minimum(excess.max(1), np.maximum(prompts - 1, 0))
        off = off[:, None] * (lengths > 0)
        starts, lengths, prompts = starts + off, lengths - off, prompts - off.max(1)
    return Pieces.whole(starts, np.minimum(lengths, limit)), np.minimum(prompts, limit)


def _trained(store: Store, pieces: Pieces) -> Int[np.ndarray, "E N"]:
    """Trained tokens of every sequence."""
    joins, rest = pieces.joins, pieces.lengths - pieces.joins
    counts = count_trained(store.mask, pieces.starts.ravel(), joins.ravel()).reshape(joins.shape)
    return counts + rest  # where a sequence has a second stretch, it is a trained token


def _alike(store: Store, pieces: Pieces, counts: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Which examples have the same tokens in all of their sequences."""
    first = pieces.lengths[:, :1]
    candidates = keep & ((pieces.lengths == first) | (pieces.lengths == 0)).all(1)
    found = np.zeros(len(keep), bool)
    for example in np.flatnonzero(candidates):
        length = int(first[example, 0])
        starts = pieces.starts[example, : counts[example]]
        sides = [store.tokens[start : start + length] for start in starts]
        found[example] = all(np.array_equal(side, sides[0]) for side in sides[1:])
    return found
