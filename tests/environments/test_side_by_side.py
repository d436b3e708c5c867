"""Calls side by side: in order, a hanging one left behind, and the process ends without it."""

import subprocess
import sys
import threading
import time

import pytest

from ptjax.environments.side_by_side import AT_ONCE, side_by_side
from ptjax.errors import UserError


def raises():
    raise ValueError("no")


def leaves():
    raise SystemExit(3)


@pytest.mark.parametrize("seconds", [10.0, None])
def test_what_calls_return_and_raise_is_in_their_order(seconds):
    calls = [lambda i=i: i for i in range(20)]
    found = side_by_side([*calls, raises, leaves], seconds)
    assert found[:20] == [*range(20)]
    assert isinstance(found[20], ValueError) and isinstance(found[21], SystemExit)
    assert side_by_side([], seconds) == []


def test_without_a_limit_they_run_on_the_thread_that_asks():
    assert side_by_side([threading.current_thread], None) == [threading.current_thread()]
    assert side_by_side([threading.current_thread], 10.0) != [threading.current_thread()]


def test_calls_that_hang_are_left_behind_and_hold_up_no_other():
    """More hang than run at one time."""
    over = threading.Event()
    calls = [over.wait] * (AT_ONCE + 1) + [lambda: 7] * 3
    before = time.monotonic()
    found = side_by_side(calls, 0.2)
    over.set()
    assert time.monotonic() - before < 3
    assert {str(one) for one in found[: AT_ONCE + 1]} == {"no answer in 0.2 s"}
    assert found[AT_ONCE + 1 :] == [7] * 3


def test_they_do_run_side_by_side():
    met = threading.Barrier(AT_ONCE)
    places = side_by_side([met.wait] * AT_ONCE, 10.0)
    assert sorted(places) == [*range(AT_ONCE)]


def test_a_mistake_of_the_user_is_raised():
    def unusable():
        raise UserError("give a model")

    for seconds in (10.0, None):
        with pytest.raises(UserError, match="give a model"):
            side_by_side([lambda: 1, unusable], seconds)


def test_a_process_ends_without_the_calls_that_hang():
    code = "import time; from ptjax.environments.side_by_side import side_by_side as run\n"
    code += "print(run([lambda: time.sleep(60)], 0.1))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert "no answer in 0.1 s" in done.stdout and not done.stderr
