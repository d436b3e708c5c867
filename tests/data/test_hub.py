"""Data sets of the hub: a local file stands in for it, and the network is never touched."""

import json
import pickle

import datasets
import datasets.config
import datasets.exceptions
import huggingface_hub.constants
import numpy as np
import pytest

from ptjax.data import build
from ptjax.data.config import SourceConfig
from ptjax.data.sources import open_source
from ptjax.errors import UserError

ROWS = [{"prompt": f"what is {i}", "completion": f"it is {i}"} for i in range(7)]
HELD_OUT = [{"prompt": "what else", "completion": "nothing else"}]


@pytest.fixture
def rows(tmp_path):
    """The rows as files, by split."""
    files = {}
    for split, found in {"train": ROWS, "test": HELD_OUT}.items():
        path = tmp_path / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
        files[split] = str(path)
    return files


@pytest.fixture
def asked(rows, tmp_path, monkeypatch):
    """The hub: `org/name` is a data set of those files; what it is asked for."""
    calls, real = [], datasets.load_dataset

    def load_dataset(name, config=None, *, split):
        calls.append((name, config, split))
        return real("json", data_files=rows, split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """As with HF_HUB_OFFLINE=1 and nothing downloaded before."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "empty")


def test_rows_are_those_of_the_train_split_unless_another_is_asked_for(asked):
    source = open_source(SourceConfig("hf:org/name"))
    assert source.read(0, 99) == ROWS
    assert source.where(3) == "hf:org/name, row 3"
    assert open_source(SourceConfig("hf:org/name/german", split="test")).read(0, 9) == HELD_OUT
    assert open_source(SourceConfig("hf:org/name", split="train[2:4]")).read(0, 9) == ROWS[2:4]
    assert open_source(SourceConfig("hf:org/name", limit=2)).read(0, 9) == ROWS[:2]
    assert asked == [
        ("org/name", None, "train"),
        ("org/name", "german", "test"),
        ("org/name", None, "train[2:4]"),
        ("org/name", None, "train"),
    ]


def test_they_go_to_workers_and_are_known_again(asked):
    source = open_source(SourceConfig("hf:org/name"))
    assert pickle.loads(pickle.dumps(source)).read(1, 3) == ROWS[1:3]
    again = open_source(SourceConfig("hf:org/name")).fingerprint()
    assert json.loads(json.dumps(source.fingerprint())) == again
    assert open_source(SourceConfig("hf:org/name", split="test")).fingerprint() != again


def test_a_run_reads_them_as_it_reads_files(asked, rows, tokenizer):
    sizes = {"max_length": 64, "batch_size": 2, "packing": False}
    batches = []
    for train, test in (("hf:org/name", "hf:org/name"), (rows["train"], rows["test"])):
        held_out = {"path": test, **({"split": "test"} if test.startswith("hf:") else {})}
        config = {"sources": [{"path": train}], "validation": [held_out], **sizes}
        made = build(config, tokenizer, seed=3)
        batches.append([next(made.train()), *(made.validation() or [])])
    for hub, files in zip(*batches, strict=True):
        assert hub.examples == files.examples
        for name, column in hub.columns.items():
            np.testing.assert_array_equal(column, files.columns[name])


def test_a_split_that_is_not_there_is_one_line(asked):
    with pytest.raises(UserError, match=r'hf:org/name: .*"tset".*train.*test') as found:
        open_source(SourceConfig("hf:org/name", split="tset"))
    assert "\n" not in str(found.value)


def test_a_hub_that_cannot_be_reached_is_one_line(offline):
    with pytest.raises(UserError, match="hf:org/name: .*reach.*; is the name right, and") as found:
        open_source(SourceConfig("hf:org/name"))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "error",
    [
        datasets.exceptions.DatasetNotFoundError("no such data set\n(private?)"),
        datasets.exceptions.DatasetGenerationError("a file is damaged"),
        RuntimeError("Dataset scripts are no longer supported, but found name.py"),
    ],
)
def test_what_datasets_refuses_is_one_line(error, monkeypatch):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UserError, match="hf:org/name: ") as found:
        open_source(SourceConfig("hf:org/name"))
    assert str(error).split("\n")[0] in str(found.value)
    assert "\n" not in str(found.value)
