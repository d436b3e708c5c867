"""What a function does to its process never reaches the one that asks."""

import os
import time

import pytest

from ptjax.errors import UserError
from ptjax.rewards.base import Failed
from ptjax.rewards.worker import Pool

CODE = """
import os, time

def act(what):
    if what == "hang":
        time.sleep(60)
    if what == "die":
        os._exit(0)
    if what == "raise":
        raise ValueError("no\\nsuch thing")
    if what == "print":
        print("x" * (1 << 22))
        os.write(1, b"{}")
    if what == "memory":
        return len(bytearray(8 << 30))
    if what == "write":
        with open(__file__ + ".made", "w") as file:
            file.write("x")
    if what == "environment":
        return os.environ.get("MY_API_KEY")
    if what == "fork":
        if os.fork() == 0:
            time.sleep(60)
    return what
"""


@pytest.fixture(scope="module")
def act(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    (folder / "my_acts.py").write_text(CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("MY_API_KEY", "secret")
        pool = Pool("my_acts.act", seconds=1.0, workers=1)
        yield lambda *what: pool.map([[one] for one in what])
        pool.close()


def test_who_hangs_or_dies_takes_nobody_along(act):
    found = act("a", "hang", "b", "die", "c", "memory", "raise", "d")
    assert [str(one) for one in found] == [
        "a",
        "took over 1 s",
        "b",
        "its process died",
        "c",
        "its process died",
        "ValueError: no\nsuch thing",
        "d",
    ]
    assert all(isinstance(found[i], Failed) for i in (1, 3, 5, 6))


def test_it_prints_to_nobody_writes_nothing_and_knows_no_keys(act):
    assert act("print", "environment") == ["print", None]
    assert isinstance(act("write")[0], Failed)


def test_what_it_started_ends_with_it(act):
    before = time.monotonic()
    assert act("fork", "hang")[0] == "fork"
    assert time.monotonic() - before < 10


def test_several_share_the_calls(tmp_path, monkeypatch):
    (tmp_path / "my_pids.py").write_text(
        "import os, time\ndef pid(n):\n    time.sleep(0.2)\n    return os.getpid()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    pool = Pool("my_pids.pid", seconds=5.0, workers=2)
    pids = {*pool.map([[n] for n in range(6)])}
    assert len(pids) == 2 and os.getpid() not in pids
    pool.close()


def test_a_function_that_is_not_there_is_the_users_mistake():
    with pytest.raises(UserError, match=r"my_nothing.f: ModuleNotFoundError: No module named"):
        Pool("my_nothing.f", seconds=1.0, workers=1).map([[1]])
