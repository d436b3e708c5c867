"""Encodes every row of a source once, into stores that later runs find again, one a process."""

import collections
import hashlib
import json
import logging
import os
from typing import Any, NamedTuple

import numpy as np

from ptjax.data.chat import Chat, Encoded
from ptjax.data.config import DataConfig, SourceConfig
from ptjax.data.encode_rows import EncodedRow, EncodeRows, RowBatches
from ptjax.data.kinds import Kind
from ptjax.data.sides import Sides
from ptjax.data.sources import Joined, open_source
from ptjax.data.spread import Sequences
from ptjax.data.store import VERSION, Store, Writer
from ptjax.data.workers import in_workers
from ptjax.errors import UserError, did_you_mean
from ptjax.hosts import exchange
from ptjax.hosts.alike import check_alike

_log = logging.getLogger(__name__)


class Encodings(NamedTuple):
    """A source with its sequences."""

    source: SourceConfig
    rows: Joined
    sequences: Sequences


def encode_source(
    source: SourceConfig, config: DataConfig, chat: Chat, cache: str, kind: Kind
) -> Encodings:
    """Encodes a source, or finds it encoded; of several processes each encodes a share of the rows.

    Args:
      source: where the rows are.
      config: on_bad_line and workers are read here; the rest is part of the cache's key.
      chat: tokenizer, template and what to train on.
      cache: folder of stores.
      kind: what is read of a row.

    Raises:
      UserError: the source cannot be read; a format that is none of the kind's; a bad row, unless
        on_bad_line is "skip"; on all processes, where a share is in question or rows differ.

    """
    if source.format is not None and source.format not in kind.forms:
        hint = did_you_mean(source.format, kind.forms)
        raise UserError(
            f"{source.path}: format {source.format!r} is none of data kind {kind.name!r}{hint}"
        )
    rows = open_source(source)
    folder = os.path.join(cache, _cache_key(rows, source, chat, kind))
    share = slice(0, len(rows))
    if exchange.several():
        check_alike(lambda: contents(source, rows, chat))
        share = exchange.own(len(rows))
        folder = f"{folder}-{share.start}-{share.stop}"

    def encoded() -> dict[str, Any]:
        store = _found(folder)
        encode = EncodeRows(chat, source, kind)
        return store.meta if store else _encode(RowBatches(rows, share), encode, folder, config)

    metas = exchange.from_each(encoded) if exchange.several() else [encoded()]
    for meta in metas:  # of the shares in their order, so the first in the file
        if meta["bad"] and config.on_bad_line == "error":
            raise UserError(meta["first_bad"])
    return Encodings(source, rows, Sequences(Store(folder, verify=False), metas, share))


def contents(source: SourceConfig, rows: Joined, chat: Chat) -> dict[str, str]:
    """What processes that encode a share each must have alike, in a few words."""
    digest = hashlib.sha256(json.dumps(chat.fingerprint()).encode()).hexdigest()[:12]
    return {
        f"what is read of {source.path}": f"{len(rows)} rows, {rows.content()}",
        "the tokenizer with its chat template": digest,
    }


def _encode(
    batches: RowBatches, encode: EncodeRows, folder: str, config: DataConfig
) -> dict[str, Any]:
    """Writes the store, unless a bad row is an error, and returns what it says of itself."""
    import grain

    threads = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    stream = grain.MapDataset.source(batches).map(encode).to_iter_dataset(threads)
    stream = in_workers(stream, min(config.workers, len(batches) // 2), buffer=8)
    counts: collections.Counter[str] = collections.Counter()
    first_bad = None
    writer, written = Writer(folder), 0
    try:
        for results in stream:
            for result in results:
                if result.bad is not None:
                    counts[result.bad.reason] += 1
                    first_bad = first_bad or str(result.bad)
                    if config.on_bad_line == "error":
                        writer.abandon()
                        return {"bad": dict(counts), "first_bad": _advice(first_bad)}
            written = _write(writer, results, written)
        return writer.commit({"bad": dict(counts), "first_bad": _advice(first_bad or "")})
    except OSError as error:
        writer.abandon()
        raise UserError(f"{folder}: the cache cannot be written ({error.strerror})") from None
    except BaseException:
        writer.abandon()
        raise


def _advice(bad: str) -> str:
    return f"{bad}; mend it, or set config.data.on_bad_line = 'skip'"


def _write(writer: Writer, results: list[EncodedRow], first: int) -> int:
    """Appends a batch's sequences; a row with none leaves one of length 0.

    Returns:
      The number of the next example.

    """
    nothing = [Sides([Encoded(np.zeros(0, np.int32), np.zeros(0, bool))], [0.0])]
    examples = [
        (result, sides)
        for result in results
        if result.bad is None
        for sides in result.examples or nothing
    ]
    listed = [
        (first + n, result, sides, sequence)
        for n, (result, sides) in enumerate(examples)
        for sequence in sides.sequences
    ]
    if listed:
        labels = [sides.labels for _, sides in examples if sides.labels is not None]
        writer.add(
            tokens=np.concatenate([sequence.tokens for *_, sequence in listed]),
            mask=np.concatenate([sequence.mask for *_, sequence in listed]),
            lengths=[len(sequence.tokens) for *_, sequence in listed],
            rows=[result.row for _, result, _, _ in listed],
            keys=np.array([result.key for _, result, _, _ in listed], np.uint64),
            examples=[n for n, *_ in listed],
            prompts=[sequence.prompt for *_, sequence in listed],
            scores=[score for _, sides in examples for score in sides.scores],
            margins=[sides.margin for _, _, sides, _ in listed],
            labels=np.concatenate([np.zeros(0, np.float32), *labels]),
        )
    return first + len(examples)


def _found(folder: str) -> Store | None:
    """The store in this folder; None when there is none, or a damaged one."""
    if not os.path.isdir(folder):
        return None
    try:
        return Store(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("the cache %s is damaged (%s): encoding anew", folder, error)
        return None


def _cache_key(rows: Joined, source: SourceConfig, chat: Chat, kind: Kind) -> str:
    """A hash of all that the encoded sequences depend on."""
    parts = [VERSION, rows.fingerprint(), source.format, source.columns, chat.fingerprint()]
    parts.append(kind.name)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
