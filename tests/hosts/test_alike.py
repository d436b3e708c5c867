"""Processes whose command, code or data differ stop at the start, and say in what."""

import json
import shutil
import socket
from pathlib import Path

import jax
import pytest

import ptjax
from ptjax.config import facts
from ptjax.data.chat import Chat
from ptjax.data.config import SourceConfig
from ptjax.data.encode import contents
from ptjax.data.sources import open_source
from ptjax.errors import UserError
from ptjax.hosts import alike, exchange
from ptjax.models.load import load
from tests import tiny
from tests.full import only_in_full
from tests.test_processes import finish, start
from tests.two import ROOT

HERE = f"on {socket.gethostname()}"


@pytest.fixture
def told(monkeypatch):
    """What the last of some processes, played by turns, says of their facts; None if nothing."""

    def run(*every):
        notes = []

        def from_each(ask):
            made = ask()
            if isinstance(made, dict):
                return [every[0]]
            notes.append(made)
            return notes

        monkeypatch.setattr(jax, "process_count", lambda: len(every))
        monkeypatch.setattr(exchange, "from_each", from_each)
        said = None
        for one in every:
            try:
                alike.check_alike(lambda one=one: one)
            except UserError as error:
                said = str(error)
        return said

    return run


def test_what_differs_is_named_on_all(told):
    first = {"config.steps": 10, "jax": "1.2", "config.mesh": [1, 2]}
    assert told(first, dict(first), {**first, "config.mesh": (1, 2)}) is None
    assert told(first, {**first, "config.steps": 20}, first) == (
        f"process 1 of 3 ({HERE}) differs: config.steps is 20, on process 0 it is 10; give all "
        "processes the same command, files and packages"
    )
    several = told(first, first, {"config.steps": 11, "config.mesh": [1, 2], "more": 1})
    assert "config.steps is 11, on process 0 it is 10 (and 2 more)" in several
    assert "more is 1, on process 0 it is not there" in told(first, first, {**first, "more": 1})


def test_a_field_that_differs_is_a_fact_of_its_own(tmp_path):
    config = tiny.tiny_config(tmp_path)
    found = facts(config)
    assert found["config.steps"] == 6
    assert found["config.data.sources[0].path"] == str(tmp_path / "chats.jsonl")
    assert json.loads(json.dumps(found)) == found


def test_the_code_of_the_package_is_a_fact(monkeypatch, tmp_path):
    package = tmp_path / "ptjax"
    (package / "hosts").mkdir(parents=True)
    (package / "loop.py").write_text("a = 1\n")
    monkeypatch.setattr(alike, "__file__", str(package / "hosts" / "alike.py"))
    one = alike.code()
    assert one["jax"] == jax.__version__
    (package / "loop.py").write_text("a = 2\n")
    two = alike.code()
    assert {name for name in one if one[name] != two[name]} == {"the code of ptjax"}


def test_what_is_read_of_a_source_is_a_fact(tmp_path):
    folder = tiny.write(tmp_path)
    path = folder / "held_out.jsonl"
    chat = Chat(load(tiny.tiny_config(folder).model.source).tokenizer)

    def facts_of(path):
        source = SourceConfig(path=str(path))
        return contents(source, open_source(source), chat)

    one = facts_of(path)
    shutil.copy(path, folder / "copy.jsonl")
    assert [*facts_of(folder / "copy.jsonl").values()] == [*one.values()]
    path.write_text(path.read_text().replace("red", "tea", 1))
    two = facts_of(path)
    assert {name for name in one if one[name] != two[name]} == {f"what is read of {path}"}


def stopped(folder, processes):
    """The error of both, which is one line and the same."""
    finish(folder, processes, codes=(2, 2))
    said = [(folder / f"err{index}.txt").read_text() for index in range(2)]
    lines = [[x for x in text.splitlines() if x.startswith("error:")] for text in said]
    assert "Traceback" not in "".join(said)
    assert lines[0] == lines[1] and len(lines[0]) == 1
    return lines[0][0]


def test_two_processes_with_two_configs(tmp_path):
    folder = tiny.write(tmp_path)
    line = stopped(folder, start(folder, each=[[], ["--config.optim.b1=0.8"]]))
    assert (
        f"process 1 of 2 ({HERE}) differs: config.optim.b1 is 0.8, on process 0 it is 0.9" in line
    )
    assert not (folder / "run").exists()


@only_in_full
def test_two_processes_with_two_files(tmp_path):
    folder = tiny.write(tmp_path)
    for index in range(2):
        (folder / str(index)).mkdir()
        tiny.write_chats(folder / str(index) / "chats.jsonl", 48, seed=index)
    overrides = {"data.sources[0].path": "chats.jsonl"}
    line = stopped(folder, start(folder, cwd=[folder / "0", folder / "1"], **overrides))
    assert f"process 1 of 2 ({HERE}) differs: what is read of chats.jsonl is '48 rows, " in line


@only_in_full
def test_two_processes_with_two_versions_of_the_code(tmp_path):
    folder = tiny.write(tmp_path)
    shutil.copytree(Path(ptjax.__file__).parent, folder / "other" / "ptjax")
    changed = folder / "other" / "ptjax" / "types.py"
    changed.write_text(f"{changed.read_text()}# another\n")
    line = stopped(folder, start(folder, cwd=[ROOT, folder / "other"]))
    assert f"process 1 of 2 ({HERE}) differs: the code of ptjax is '" in line
