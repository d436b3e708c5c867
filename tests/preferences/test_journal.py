"""A file made in batches, killed at every step of its making."""

import json

import pytest

from ptjax.errors import UserError
from ptjax.preferences import journal as module
from ptjax.preferences.journal import Journal

BATCHES = [[{"a": "é"}, {"b": 2}], [], [{"c": [3]}], [{"d": 4}]]


class Killed(BaseException):
    pass


def make(path, settings=None, kill=None):
    """Writes what is left; `kill(batch, where)` may raise."""
    journal = Journal(path, settings or {"seed": 1})
    for i, batch in list(enumerate(BATCHES))[journal.done :]:
        if kill:
            kill(i)
        journal.append(batch, {"batches": i + 1})
    if not journal.finished:
        journal.finish()
    return journal


@pytest.fixture
def whole(tmp_path):
    make(tmp_path / "whole" / "x.jsonl")
    folder = tmp_path / "whole"
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_lines_are_json_and_the_record_has_the_totals(whole):
    lines = whole["x.jsonl"].decode().splitlines()
    assert [json.loads(line) for line in lines] == [row for batch in BATCHES for row in batch]
    record = json.loads(whole["x.jsonl.record.json"])
    assert record["totals"] == {"batches": 4} and record["finished"] is True
    assert set(whole) == {"x.jsonl", "x.jsonl.record.json"}


@pytest.mark.parametrize("batch", range(4))
@pytest.mark.parametrize("torn", [0, 5, 1000])
def test_a_kill_while_a_batch_is_written(tmp_path, whole, batch, torn):
    path = tmp_path / "x.jsonl"
    (tmp_path / "whole").rename(tmp_path.parent / f"{tmp_path.name}-whole")

    def kill(i):
        if i == batch:
            text = "".join(json.dumps(row) + "\n" for row in BATCHES[i])
            with (tmp_path / "x.jsonl.part").open("a") as file:
                file.write(text[:torn])
            raise Killed

    with pytest.raises(Killed):
        make(path, kill=kill)
    assert not path.exists()
    assert make(path).done == 4
    assert files(tmp_path) == whole


@pytest.mark.parametrize("writes", range(7))
def test_a_kill_before_a_record_is_written(tmp_path, whole, writes, monkeypatch):
    path = tmp_path / "run" / "x.jsonl"
    left = [writes]

    def replace_file(*args):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        real(*args)

    real = module.replace_file
    monkeypatch.setattr(module, "replace_file", replace_file)
    if writes < 6:
        with pytest.raises(Killed):
            make(path)
    left[0] = 100
    make(path)
    assert files(tmp_path / "run") == whole
    assert make(path).finished
    assert files(tmp_path / "run") == whole


def test_other_settings_are_not_mixed_in(tmp_path):
    make(tmp_path / "x.jsonl")
    message = r"begun with seed = 1, and is now 2; .*remove x.jsonl and x.jsonl.record.json"
    with pytest.raises(UserError, match=message):
        Journal(tmp_path / "x.jsonl", {"seed": 2})
    with pytest.raises(UserError, match="begun with top = null, and is now 5"):
        Journal(tmp_path / "x.jsonl", {"seed": 1, "top": 5})


def test_other_settings_may_take_a_name_under_which_nothing_was_made(tmp_path):
    Journal(tmp_path / "x.jsonl", {"seed": 1}).append([], {})
    (tmp_path / "x.jsonl.part").write_text("torn")
    assert make(tmp_path / "x.jsonl", {"seed": 2}).done == 4
    assert json.loads((tmp_path / "x.jsonl").read_text().splitlines()[0]) == {"a": "é"}


def test_what_it_did_not_make_is_left_alone(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("{}\n")
    with pytest.raises(UserError, match="x.jsonl exists and has no record"):
        make(path)
    path.unlink()
    make(path)
    path.write_text(path.read_text().replace("2", "3"))
    with pytest.raises(UserError, match="is not what x.jsonl.record.json says was written"):
        make(path)
    path.unlink()
    with pytest.raises(UserError, match="is not what"):
        make(path)
    (tmp_path / "x.jsonl.record.json").write_text("{")
    with pytest.raises(UserError, match="x.jsonl.record.json is damaged"):
        make(path)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: is not a folder; give another place"):
        Journal(tmp_path / "file" / "x.jsonl", {})
