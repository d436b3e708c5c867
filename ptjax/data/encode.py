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
from ptjax.data.formats import canonical
from ptjax.data.judged import judged
from ptjax.data.kinds import Kind
from ptjax.data.messages import BadForm
from ptjax.data.rows import BadRow, Rows
from ptjax.data.sides import Sides, encode_sides
from ptjax.data.sources import Joined, open_source
from ptjax.data.store import VERSION, Store, Writer
from ptjax.data.workers import in_workers
from ptjax.errors import UserError, did_you_mean

_ROWS_AT_ONCE = 64
_log = logging.getLogger(__name__)


class EncodedRow(NamedTuple):
    """What became of one row."""

    row: int
    key: int
    """Hash of the row's content."""
    examples: list[Sides]
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

    def __init__(self, chat: Chat, source: SourceConfig, kind: Kind):
        self._chat = chat
        self._kind = kind
        self._form = source.format
        self._columns = dict(source.columns)

    def __call__(self, batch: tuple[int, list[Any], list[str]]) -> list[EncodedRow]:
        """Encodes one batch of `RowBatches`."""
        start, rows, places = batch
        results: list[EncodedRow] = []
        read: list[list[Any]] = []
        for i, row in enumerate(rows):
            bad, key = None, 0
            if isinstance(row, BadRow):
                bad = row
            else:
                key = _key(row)
                try:
                    read.append(self._read(row))
                except BadForm as error:
                    bad = BadRow(places[i], error.reason, error.detail)
            results.append(EncodedRow(start + i, key, [], bad))
        encoded = iter(self._encode([example for examples in read for example in examples]))
        counts = iter(read)
        for i, result in enumerate(results):
            if result.bad is not None:
                continue
            made = [next(encoded) for _ in next(counts)]
            wrong = next((one for one in made if isinstance(one, BadForm)), None)
            if wrong is not None:
                bad = BadRow(places[i], wrong.reason, wrong.detail)
                results[i] = result._replace(bad=bad)
            else:
                sides = [one for sides in made if not isinstance(sides, BadForm) for one in sides]
                results[i] = result._replace(examples=sides)
        return results

    def _read(self, row: Any) -> list[Any]:
        """The row in canonical form: what `_encode` takes."""
        if self._kind.judged:
            return list(judged(row, self._kind, form=self._form, columns=self._columns))
        return [canonical(row, form=self._form, columns=self._columns)]

    def _encode(self, examples: list[Any]) -> list[list[Sides] | BadForm]:
        """By canonical example what it makes: one example, or, not judged, one for a sequence."""
        if self._kind.judged:
            sides = encode_sides(self._chat, examples, self._kind)
            return [one if isinstance(one, BadForm) else [one] for one in sides]
        encoded = self._chat.encode(examples)
        return [
            one if isinstance(one, BadForm) else [Sides([sequence], [0.0]) for sequence in one]
            for one in encoded
        ]


def encode_source(
    source: SourceConfig, config: DataConfig, chat: Chat, cache: str, kind: Kind
) -> Encodings:
    """Encodes a source, or finds it encoded.

    Args:
      source: where the rows are.
      config: on_bad_line and workers are read here; the rest is part of the cache's key.
      chat: tokenizer, template and what to train on.
      cache: folder of stores.
      kind: what is read of a row.

    Raises:
      UserError: the source cannot be read; a format that is none of the kind's; a bad row, unless
        on_bad_line is "skip".

    """
    if source.format is not None and source.format not in kind.forms:
        hint = did_you_mean(source.format, kind.forms)
        raise UserError(
            f"{source.path}: format {source.format!r} is none of data kind {kind.name!r}{hint}"
        )
    rows = open_source(source)
    folder = os.path.join(cache, _cache_key(rows, source, chat, kind))
    store = _found(folder)
    if store is None:
        _encode(rows, EncodeRows(chat, source, kind), folder, config)
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
    writer, written = Writer(folder), 0
    try:
        for results in stream:
            for result in results:
                if result.bad is not None:
                    counts[result.bad.reason] += 1
                    first_bad = first_bad or str(result.bad)
                    if config.on_bad_line == "error":
                        raise UserError(_advice(first_bad))
            written = _write(writer, results, written)
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
            keys=np.array([_together(result) for _, result, _, _ in listed], np.uint64),
            examples=[n for n, *_ in listed],
            prompts=[sequence.prompt for *_, sequence in listed],
            scores=[score for _, sides in examples for score in sides.scores],
            margins=[sides.margin for _, _, sides, _ in listed],
            labels=np.concatenate([np.zeros(0, np.float32), *labels]),
        )
    return first + len(examples)


def _together(result: EncodedRow) -> int:
    """Hash of what keeps rows on one side when some are held out: the prompt, or the row itself."""
    shared = result.examples[0].shared if result.examples else b""
    return _hash(shared) if shared else result.key


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
    return _hash(json.dumps(row, sort_keys=True, default=str).encode("utf-8", "replace"))


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _cache_key(rows: Joined, source: SourceConfig, chat: Chat, kind: Kind) -> str:
    """A hash of all that the encoded sequences depend on."""
    parts = [VERSION, rows.fingerprint(), source.format, source.columns, chat.fingerprint()]
    parts.append(kind.name)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
