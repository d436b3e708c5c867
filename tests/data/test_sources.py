import json
import pickle

import numpy as np
import pytest

from ptjax.data.config import SourceConfig
from ptjax.data.rows import BadRow
from ptjax.data.sources import open_source
from ptjax.errors import UserError

ROWS = [{"prompt": f"p{i}", "completion": "c" * i} for i in range(1, 8)]


def _json(path):
    path.write_text(json.dumps(ROWS, indent=1))


def _lines(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def _parquet(path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=3)


def _array_record(path):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for row in ROWS:
        writer.write(json.dumps(row).encode())
    writer.close()


def _saved(path):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(str(path))


KINDS = {
    "rows.jsonl": _lines,
    "lines.json": _lines,
    "rows.json": _json,
    "rows.parquet": _parquet,
    "rows.array_record": _array_record,
    "folder": _saved,
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_reads_the_same_rows(tmp_path, name):
    KINDS[name](tmp_path / name)
    source = open_source(SourceConfig(str(tmp_path / name)))
    assert len(source) == len(ROWS)
    assert source.read(0, 99) == ROWS
    assert source.read(2, 5) == ROWS[2:5]
    assert name in source.where(4)
    json.dumps(source.fingerprint())


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.array_record"])
def test_sources_go_to_workers(tmp_path, name):
    KINDS[name](tmp_path / name)
    source = open_source(SourceConfig(str(tmp_path / name)))
    source.read(0, 1)
    assert pickle.loads(pickle.dumps(source)).read(1, 3) == ROWS[1:3]


@pytest.mark.parametrize("name", KINDS)
def test_copies_have_the_same_content_and_changed_rows_another(tmp_path, monkeypatch, name):
    changed = [*ROWS[:4], {"prompt": "p5", "completion": "another"}, *ROWS[5:]]
    found = []
    for folder, rows in {"here": ROWS, "there": ROWS, "changed": changed}.items():
        monkeypatch.setitem(globals(), "ROWS", rows)
        (tmp_path / folder).mkdir()
        KINDS[name](tmp_path / folder / name)
        found.append(open_source(SourceConfig(str(tmp_path / folder / name))).content())
    assert found[0] == found[1] != found[2]


def test_of_several_files_the_content_is_that_of_all(tmp_path):
    found = []
    for name in ("a.jsonl", "b.jsonl"):
        _lines(tmp_path / name)
        found.append(open_source(SourceConfig(str(tmp_path / "*.jsonl"))).content())
    (tmp_path / "b.jsonl").write_text(json.dumps(ROWS[0]))
    found.append(open_source(SourceConfig(str(tmp_path / "*.jsonl"))).content())
    assert len({*found}) == 3


def test_glob_limit_and_place(tmp_path):
    for name in ("b.jsonl", "a.jsonl"):
        _lines(tmp_path / name)
    source = open_source(SourceConfig(str(tmp_path / "*.jsonl"), limit=9))
    assert source.read(0, 99) == ROWS + ROWS[:2]
    assert source.where(8) == f"{tmp_path}/b.jsonl, line 2"


def test_split_of_a_saved_data_set(tmp_path):
    import datasets

    saved = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS[:2])})
    saved.save_to_disk(str(tmp_path / "folder"))
    assert open_source(SourceConfig(str(tmp_path / "folder"))).read(0, 9) == ROWS[:2]
    with pytest.raises(UserError, match="no split 'test'; it has"):
        open_source(SourceConfig(str(tmp_path / "folder"), split="test"))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("rows.json", b'[\n{"a" 1}]', "is not JSON (line 2, column 6: a colon is missing"),
        ("rows.json", b"3", "is not an array of rows"),
        ("rows.json", b"[]", "the JSON is empty"),
        ("rows.json", b'["\xff"]', "is not UTF-8"),
        ("rows.jsonl", b"", "the file is empty"),
        ("rows.jsnl", b"x", "unknown extension '.jsnl'; did you mean '.jsonl'?"),
        ("rows", b"x", "unknown extension"),
        ("rows.parquet", b"PAR1nonsense", "is not a whole Parquet file"),
        ("rows.array_record", b"nonsense" * 100, "is not an ArrayRecord file"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_source(SourceConfig(str(path)))
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_missing_files(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}\n")
    cases = {
        "trian.jsonl": "no such file; did you mean 'train.jsonl'?",
        "no/rows.jsonl": "nor is there a folder",
        "*.parquet": "no file matches",
        ".": "is a folder; name its files",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message.replace("?", r"\?").replace("*", r"\*")):
            open_source(SourceConfig(f"{tmp_path}/{name}"))
    with pytest.raises(UserError, match="only hub data sets have splits"):
        open_source(SourceConfig(f"{tmp_path}/train.jsonl", split="train"))


def test_truncated_parquet(tmp_path):
    path = tmp_path / "rows.parquet"
    _parquet(path)
    whole = path.read_bytes()
    for length in np.linspace(1, len(whole) - 1, 12).astype(int):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="Parquet"):
            open_source(SourceConfig(str(path)))


def test_items_that_are_no_objects(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"text": "a"}, 3]')
    assert open_source(SourceConfig(str(path))).read(0, 2) == [
        {"text": "a"},
        BadRow(f"{path}, item 1", "is not an object"),
    ]
