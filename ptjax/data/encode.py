"""Encodes every row of a source once, into a store that later runs find again."""

import collections
import hashlib
import json
import logging
import os
from typing import Any, NamedTuple

import numpy as np

from ptjax.data.chat import Chat, Encoded
from ptjax.data.config import DataConfig, SourceConfig
from ptjax.data.formats import Example, canonical
from ptjax.data.messages import BadForm
from ptjax.data.rows import BadRow, Rows
from ptjax.data.sources import Joined, open_source
from ptjax.data.store import VERSION, Store, Writer
from ptjax.data.workers import in_workers
from ptjax.errors import UserError

_ROWS_AT_ONCE = 64
_log = logging.getLogger(__name__)


class EncodedRow(NamedTuple):
    """What became of one row."""

    row: int
    key: int
    """Hash of the row's content: alike rows stay together when rows are held out."""
    sequences: list[Encoded]
    bad: BadRow | None


class Encodings(NamedTuple):
    """A source with its sequences."""

    source: SourceConfig
    rows: Joined
    store: Store


class RowBatches:
    """A source as Grain wants it: item i is a batch of rows with the number of the first."""

    def __init__(self, rows: Rows):
        self._rows = rows

    def __len__(self) -> int:
        return -(-len(self._rows) // _ROWS_AT_ONCE)

    def __getitem__(self, index: int) -> tuple[int, list[Any], list[str]]:
        start = index * _ROWS_AT_ONCE
        rows = self._rows.read(start, start + _ROWS_AT_ONCE)
        return start, rows, [self._rows.where(start + i) for i in range(len(rows))]


class EncodeRows:
    """Batches of rows to `EncodedRow`s; runs in the workers."""

    def __init__(self, chat: Chat, source: SourceConfig):
        self._chat = chat
        self._form = source.format
        self._columns = dict(source.columns)

    def __call__(self, batch: tuple[int, list[Any], list[str]]) -> list[EncodedRow]:
        """Encodes one batch of `RowBatches`."""
        start, rows, places = batch
        results: list[EncodedRow] = []
        examples: list[Example] = []
        for i, row in enumerate(rows):
            bad, key = None, 0
            if isinstance(row, BadRow):
                bad = row
            else:
                key = _key(row)
                try:
                    example = canonical(row, form=self._form, columns=self._columns)
                    examples.append(example)
                except BadForm as error:
                    bad = BadRow(places[i], error.reason, error.detail)
            results.append(EncodedRow(start + i, key, [], bad))
        encoded = iter(self._chat.encode(examples))
        for i, result in enumerate(results):
            if result.bad is not None:
                continue
            made = next(encoded)
            if isinstance(made, BadForm):
                bad = BadRow(places[i], made.reason, made.detail)
                results[i] = result._replace(bad=bad)
            else:
                results[i] = result._replace(sequences=made)
        return results


def encode_source(source: SourceConfig, config: DataConfig, chat: Chat, cache: str) -> Encodings:
    """Encodes a source, or finds it encoded.

    Args:
      source: where the rows are.
      config: on_bad_line and workers are read here; the rest is part of the cache's key.
      chat: tokenizer, template and what to train on.
      cache: folder of stores.

    Raises:
      UserError: the source cannot be read; a bad row, unless on_bad_line is "skip".

    """
    rows = open_source(source)
    folder = os.path.join(cache, _cache_key(rows, source, chat))
    store = _found(folder)
    if store is None:
        _encode(rows, EncodeRows(chat, source), folder, config)
        store = Store(folder)
    bad: dict[str, Any] = store.meta["bad"]
    if bad and config.on_bad_line == "error":
        raise UserError(store.meta["first_bad"])
    return Encodings(source, rows, store)


def _encode(rows: Joined, encode: EncodeRows, folder: str, config: DataConfig) -> None:
    import grain

    batches = grain.MapDataset.source(RowBatches(rows)).map(encode)
    threads = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    stream = batches.to_iter_dataset(threads)
    stream = in_workers(stream, min(config.workers, len(batches) // 2), buffer=8)
    counts: collections.Counter[str] = collections.Counter()
    first_bad = None
    writer = Writer(folder)
    try:
        for results in stream:
            for result in results:
                if result.bad is not None:
                    counts[result.bad.reason] += 1
                    first_bad = first_bad or str(result.bad)
                    if config.on_bad_line == "error":
                        raise UserError(_advice(first_bad))
            _write(writer, results)
        meta = {"rows": len(rows), "bad": dict(counts), "first_bad": _advice(first_bad or "")}
        writer.commit(meta)
    except OSError as error:
        writer.abandon()
        raise UserError(f"{folder}: the cache cannot be written ({error.strerror})") from None
    except BaseException:
        writer.abandon()
        raise


def _advice(bad: str) -> str:
    return f"{bad}; mend it, or set config.data.on_bad_line = 'skip'"


def _write(writer: Writer, results: list[EncodedRow]) -> None:
    """Appends a batch's sequences. A row with none leaves one of length 0."""
    empty = [Encoded(np.zeros(0, np.int32), np.zeros(0, bool))]
    pairs = [
        (result, sequence)
        for result in results
        if result.bad is None
        for sequence in result.sequences or empty
    ]
    if pairs:
        writer.add(
            tokens=np.concatenate([sequence.tokens for _, sequence in pairs]),
            mask=np.concatenate([sequence.mask for _, sequence in pairs]),
            lengths=[len(sequence.tokens) for _, sequence in pairs],
            rows=[result.row for result, _ in pairs],
            keys=np.array([result.key for result, _ in pairs], np.uint64),
        )


def _found(folder: str) -> Store | None:
    """The store in this folder; None when there is none, or a damaged one."""
    if not os.path.isdir(folder):
        return None
    try:
        return Store(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("the cache %s is damaged (%s): encoding anew", folder, error)
        return None


def _key(row: Any) -> int:
    content = json.dumps(row, sort_keys=True, default=str).encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _cache_key(rows: Joined, source: SourceConfig, chat: Chat) -> str:
    """A hash of all that the encoded sequences depend on."""
    parts = [VERSION, rows.fingerprint(), source.format, source.columns, chat.fingerprint()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
