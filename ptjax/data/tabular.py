"""Sources whose rows are records already: JSON arrays, Parquet, ArrayRecord, hub data sets."""

import bisect
import hashlib
import itertools
import json
import os
from typing import Any

import numpy as np

from ptjax.data.jsonl import file_content, file_fingerprint, parse_line
from ptjax.data.rows import BadRow, Row, no_rows
from ptjax.errors import UserError
from ptjax.json_errors import in_words

_LOOKED_AT = 100
"""Rows of a hub data set by which two copies are told apart."""


class JsonArray:
    """The objects of a JSON file that holds one array."""

    def __init__(self, path: str):
        self.path = path
        try:
            with open(path, encoding="utf-8") as file:
                self._rows = json.load(file)
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: is not UTF-8 (byte {error.start})") from None
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: is not JSON ({in_words(error)})") from None
        except RecursionError:
            raise UserError(f"{path}: is nested too deeply") from None
        if not isinstance(self._rows, list):
            raise UserError(f"{path}: the JSON is not an array of rows")
        if not self._rows:
            raise no_rows(path, "the JSON is empty")

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, start: int, stop: int) -> list[Row | BadRow]:
        """The array's items from `start` up to `stop`."""
        return [
            row if isinstance(row, dict) else BadRow(self.where(start + i), "is not an object")
            for i, row in enumerate(self._rows[start:stop])
        ]

    def where(self, index: int) -> str:
        """File and item; items count from 0."""
        return f"{self.path}, item {index}"

    def fingerprint(self) -> list[Any]:
        """Path, size and time of change."""
        return file_fingerprint(self.path)

    def content(self) -> str:
        """A digest of the file's bytes."""
        return file_content(self.path)


class Parquet:
    """The rows of one Parquet file; the row group read last stays in memory."""

    def __init__(self, path: str):
        self.path = path
        metadata = self._open().metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._ends = list(itertools.accumulate(sizes))
        self._group: tuple[int, Any] | None = None
        if not sum(sizes):
            raise no_rows(path, "the file has no rows")

    def _open(self) -> Any:
        import pyarrow
        import pyarrow.parquet

        try:
            return pyarrow.parquet.ParquetFile(self.path)
        except pyarrow.ArrowException as error:
            raise UserError(f"{self.path}: is not a whole Parquet file ({error})") from None

    def __len__(self) -> int:
        return self._ends[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_group": None}

    def read(self, start: int, stop: int) -> list[Row | BadRow]:
        """The rows from `start` up to `stop`, columns that are null left out."""
        rows: list[Row | BadRow] = []
        while start < min(stop, len(self)):
            group = bisect.bisect_right(self._ends, start)
            if self._group is None or self._group[0] != group:
                self._group = (group, self._read_group(group))
            first = self._ends[group - 1] if group else 0
            end = min(stop, self._ends[group])
            rows += self._group[1].slice(start - first, end - start).to_pylist()
            start = end
        return rows

    def _read_group(self, group: int) -> Any:
        try:
            return self._open().read_row_group(group)
        except OSError as error:
            raise UserError(f"{self.path}: row group {group} is damaged ({error})") from None

    def where(self, index: int) -> str:
        """File and row; rows count from 0."""
        return f"{self.path}, row {index}"

    def fingerprint(self) -> list[Any]:
        """Path, size and time of change."""
        return file_fingerprint(self.path)

    def content(self) -> str:
        """A digest of the file's bytes."""
        return file_content(self.path)


class ArrayRecord:
    """The records of one ArrayRecord file, each a JSON object in UTF-8."""

    def __init__(self, path: str):
        from grain.sources import ArrayRecordDataSource

        self.path = path
        try:
            self._source: Any = ArrayRecordDataSource([path])
            self._length = len(self._source)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{path}: is not an ArrayRecord file ({error})") from None
        if not self._length:
            raise no_rows(path, "the file has no records")

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, stop: int) -> list[Row | BadRow]:
        """The records from `start` up to `stop`."""
        rows = []
        for index in range(start, min(stop, len(self))):
            row = parse_line(self._source[index])
            rows.append(BadRow(self.where(index), *row) if isinstance(row, tuple) else row)
        return rows

    def where(self, index: int) -> str:
        """File and record; records count from 0."""
        return f"{self.path}, record {index}"

    def fingerprint(self) -> list[Any]:
        """Path, size and time of change."""
        return file_fingerprint(self.path)

    def content(self) -> str:
        """A digest of the file's bytes."""
        return file_content(self.path)


class Hub:
    """A data set of the hub or of a folder that `save_to_disk` wrote, read by `datasets`."""

    def __init__(self, path: str, split: str | None):
        import datasets
        from datasets.exceptions import DatasetsError

        self.path = path
        try:
            if path.startswith("hf:"):
                parts = path.removeprefix("hf:").split("/")
                name, config = "/".join(parts[:2]), "/".join(parts[2:]) or None
                data = datasets.load_dataset(name, config, split=split or "train")
            else:
                data = datasets.load_from_disk(path)
        except (OSError, ValueError, RuntimeError, DatasetsError) as error:
            said = " ".join(f"{path}: {type(error).__name__}: {error}".split())
            unreached = path.startswith("hf:") and isinstance(error, OSError)
            hint = "; is the name right, and can this machine reach the hub?" if unreached else ""
            raise UserError(said + hint) from None
        if isinstance(data, datasets.DatasetDict):
            if (split or "train") not in data:
                raise UserError(f"{path}: no split {split or 'train'!r}; it has {sorted(data)}")
            data = data[split or "train"]
        if not isinstance(data, datasets.Dataset):
            raise UserError(f"{path}: a data set with random access is needed")
        if not len(data):
            raise no_rows(path, "the data set has no rows")
        self._data = data.with_format(None)

    def __len__(self) -> int:
        return len(self._data)

    def read(self, start: int, stop: int) -> list[Row | BadRow]:
        """The rows from `start` up to `stop`."""
        columns = self._data[start:stop]
        names = list(columns)
        return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def where(self, index: int) -> str:
        """Data set and row; rows count from 0."""
        return f"{self.path}, row {index}"

    def fingerprint(self) -> list[Any]:
        """What `datasets` says of the content."""
        return [self.path, self._data._fingerprint]

    def content(self) -> str:
        """A digest of some rows: that of `datasets` depends on when each host loaded them."""
        places = np.linspace(0, len(self) - 1, min(len(self), _LOOKED_AT)).astype(int).tolist()
        rows = [self.read(place, place + 1) for place in places]
        return hashlib.sha256(json.dumps(rows, default=str).encode()).hexdigest()[:12]


def is_saved_dataset(path: str) -> bool:
    """Whether a folder was written by `datasets`' `save_to_disk`."""
    return any(os.path.exists(os.path.join(path, f)) for f in ("state.json", "dataset_dict.json"))
