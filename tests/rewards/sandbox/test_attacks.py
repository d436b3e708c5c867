"""Hostile programs get nothing, honest ones work, and nothing is left of either."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ptjax.rewards.code_grade import grade
from ptjax.rewards.code_tests import Prints
from ptjax.rewards.sandbox.limits import Limits
from tests.rewards.sandbox import host
from tests.rewards.sandbox.attacks import ATTACKS
from tests.rewards.sandbox.honest import PROGRAMS
from tests.shut_in import skip_where_nothing_can_be

SYSTEM_PYTHON = "/usr/bin/python3"


@pytest.fixture(scope="module", autouse=True)
def sandbox():
    skip_where_nothing_can_be()


def check(found):
    assert found.attacks >= 60
    assert found.escapes == []
    assert found.passes == []
    assert found.loose == []
    assert found.leftovers == []


def test_no_attack_gets_anything():
    check(host.run_all())


def test_no_attack_gets_anything_without_root():
    if os.geteuid() != 0:
        pytest.skip("this is not root: the other test has done it")
    if not os.path.exists(SYSTEM_PYTHON):
        pytest.skip(f"no {SYSTEM_PYTHON} that a user without rights may run")
    check(host.as_nobody(SYSTEM_PYTHON, kinds=1))


# Only such as do no harm there.
@pytest.mark.parametrize(
    "name",
    [
        "reads: the secret of another user",
        "reads: the environment",
        "reads: other processes",
        "network: a TCP connection",
        "network: a unix socket by its path",
        "network: an abstract unix socket",
        "exhausts: a thousand threads",
        "exhausts: 200 MB of output",
        "calls: memfd_create",
        "calls: socket",
    ],
)
def test_attacks_get_something_where_there_is_no_sandbox(name):
    (attack,) = [one for one in ATTACKS if one.name == name]
    with host.host() as one:
        source = one.source(attack)
        env = os.environ | {"SANDBOX_TOKEN": one.words["TOKEN"]}
        ran = subprocess.run(
            [sys.executable, "-"], input=source.encode(), capture_output=True, env=env, timeout=20
        )
    assert b"ESCAPED" in ran.stdout, ran.stderr.decode()


def test_honest_programs_work():
    test = [Prints("3 4\n", "12")]

    def run(source):
        return grade(source, test, Limits())[0]

    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(PROGRAMS, pool.map(run, PROGRAMS.values()), strict=True))
    assert {name: one for name, one in found.items() if not one.passed} == {}


def test_a_sandbox_dies_with_the_process_that_made_it(tmp_path):
    mark = tmp_path / "mark"
    source = f"""
from pathlib import Path
from ptjax.rewards.sandbox.limits import Limits
from ptjax.rewards.sandbox.session import Session
from tests.shut_in import skip_where_nothing_can_be
with Session(Limits(wall_seconds=600)) as session:
    session.start("run", source="import os, time; os.fork(); time.sleep(600)")
    Path({str(mark)!r}).touch()
    session.listen()
"""
    with host.host() as one:
        process = subprocess.Popen([sys.executable, "-c", source])
        while not mark.exists():
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(0.1)
        assert one.leftovers(0)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert one.leftovers() == set()
