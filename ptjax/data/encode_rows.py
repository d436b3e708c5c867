"""Rows to encoded examples, batch by batch: what the workers do."""

import hashlib
import json
from typing import Any, NamedTuple

from ptjax.data.chat import Chat
from ptjax.data.config import SourceConfig
from ptjax.data.formats import canonical
from ptjax.data.judged import judged
from ptjax.data.kinds import Kind
from ptjax.data.messages import BadForm
from ptjax.data.rows import BadRow, Rows
from ptjax.data.sides import Sides, encode_sides

_ROWS_AT_ONCE = 64


class EncodedRow(NamedTuple):
    """What became of one row."""

    row: int
    key: int
    """Hash of what keeps rows on one side when some are held out: the prompt, or the row itself."""
    examples: list[Sides]
    bad: BadRow | None


class RowBatches:
    """A share of a source as Grain wants it: item i is a batch of rows and the first's number."""

    def __init__(self, rows: Rows, share: slice):
        self._rows, self._share = rows, share

    def __len__(self) -> int:
        return -(-(self._share.stop - self._share.start) // _ROWS_AT_ONCE)

    def __getitem__(self, index: int) -> tuple[int, list[Any], list[str]]:
        start = self._share.start + index * _ROWS_AT_ONCE
        rows = self._rows.read(start, min(start + _ROWS_AT_ONCE, self._share.stop))
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
                shared = sides[0].shared if sides else b""
                key = hash_of(shared) if shared else result.key
                results[i] = result._replace(examples=sides, key=key)
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


def hash_of(content: bytes) -> int:
    """64 bits."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _key(row: Any) -> int:
    return hash_of(json.dumps(row, sort_keys=True, default=str).encode("utf-8", "replace"))
