"""A process that ends before its time ends the others; no jax is needed to see it."""

import os
import socket
import subprocess
import sys
import time

import pytest

from tests.two import ROOT

SCRIPT = """
import pathlib, sys, time
from ptjax.hosts import lifeline

lifeline.GRACE = 1.0
folder, index, count, then = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:4]), sys.argv[4]


class Store:
    def key_value_set(self, key, value):
        (folder / "new").write_text(value)
        (folder / "new").rename(folder / "said")

    def blocking_key_value_get(self, key, patience):
        while not (folder / "said").exists():
            time.sleep(0.01)
        return (folder / "said").read_text()


line = lifeline.Lifeline(Store(), "localhost:1", index, count)
print("there", flush=True)
sys.stdin.readline()
if then == "fails":
    line.fail("the cable is out", 2)
    line.end(2)
if then == "is done":
    line.leave()
    sys.exit()
if then == "fails too":
    line.verdict(60)
    assert line.speaks()
    print("error: my own", file=sys.stderr)
    line.fail("my own", 2)
    line.end(2)
if then == "works":
    time.sleep(0.5)
    line.leave()
    time.sleep(0.5)
    sys.exit()
time.sleep(60)
"""


@pytest.fixture
def start(tmp_path):
    """Starts processes that do what is said, once each has met process 0."""
    started = []

    def run(*whats):
        for index, what in enumerate(whats):
            words = [sys.executable, "-c", SCRIPT, str(tmp_path), str(index), str(len(whats)), what]
            pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            env = {**os.environ, "PYTHONPATH": str(ROOT)}
            started.append(subprocess.Popen(words, text=True, env=env, **pipes))
        for process in started:
            assert process.stdout.readline() == "there\n"
        time.sleep(0.2)  # what they said is heard
        return started

    yield run
    for process in started:
        process.kill()
        process.communicate()


def go(*processes):
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()


def end(process):
    """(exit code, standard error)."""
    process.wait(60)
    return process.returncode, process.stderr.read()


HERE = f"on {socket.gethostname()}"


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_one_that_is_killed_ends_all(start, victim):
    processes = start("waits", "waits", "waits")
    processes[victim].kill()
    others = [process for process in processes if process is not processes[victim]]
    for process in others:
        code, said = end(process)
        assert code == 5
        assert said.startswith(f"error: process {victim} of 3 ({HERE}) is gone: it was killed")
        assert said.count("\n") == 1


@pytest.mark.parametrize("culprit", [0, 1])
def test_one_that_fails_ends_all_with_its_reason(start, culprit):
    whats = ["waits", "waits", "waits"]
    whats[culprit] = "fails"
    processes = start(*whats)
    go(processes[culprit])
    for process in processes:
        code, said = end(process)
        expected = f"error: process {culprit} of 3 ({HERE}) stopped: the cable is out\n"
        assert (code, said) == (2, "" if process is processes[culprit] else expected)


def test_one_that_finds_the_same_mistake_says_it_itself(start):
    processes = start("fails", "fails too")
    go(*processes)
    assert end(processes[1]) == (2, "error: my own\n")


def test_one_that_is_done_may_go(start):
    processes = start("works", "is done", "works")
    go(*processes)
    assert [end(process) for process in processes] == [(0, "")] * 3


def test_strangers_are_not_heard(start, tmp_path):
    processes = start("works", "works")
    port = int((tmp_path / "said").read_text().split()[0])
    for word in (b'{"why": "no", "code": 1, "process": 1, "host": "x"}\n', b"GET / HTTP/1.1\n\n"):
        with socket.create_connection(("localhost", port)) as stranger:
            stranger.sendall(word)
    time.sleep(0.3)
    assert [process.poll() for process in processes] == [None, None]
