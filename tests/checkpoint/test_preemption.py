import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest

from ptjax.checkpoint import watch

SCRIPT = """
import os, signal, sys
from ptjax.checkpoint import watch
with watch() as seen:
    os.kill(os.getpid(), signal.SIGTERM)
    print("asked", seen.requested(1), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still alive", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_request_to_stop(number, caplog):
    before = signal.getsignal(number)
    with watch() as seen:
        assert not seen.requested(1)
        os.kill(os.getpid(), number)
        assert seen.requested(2)
        assert seen.requested(3)
        assert f"{number.name}: saving" in caplog.text
    assert signal.getsignal(number) is before


def test_the_second_signal_kills():
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=root,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "asked True\n"), done.stderr


def test_outside_the_main_thread_nothing_is_handled():
    seen = []

    def run():
        with watch() as watching:
            seen.append(watching.requested(1))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [False]
