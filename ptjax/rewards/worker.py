"""Processes that score one completion at a time and are killed when one takes too long.

    parent: {"function": "package.module.f"} on the command line; a JSON list of arguments a line
    child:  {"value": ...} or {"error": "..."} a line

A thread cannot be killed, and a parser's own time limit may hang with it; a process can.
"""

import atexit
import functools
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ptjax.errors import UserError
from ptjax.rewards.base import Failed

START_SECONDS = 120.0
"""What a process may take to import its function and `start`."""
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT")


class Worker:
    """One such process, started when it is first asked and again after it was killed.

    Args:
      function: dotted path; it takes and returns what JSON holds.
      seconds: that a call may take.
    """

    def __init__(self, function: str, seconds: float):
        self.function, self.seconds = function, seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""

    def call(self, arguments: Sequence[Any]) -> Any:
        """The function's value.

        Raises:
          Failed: it raises, takes too long, or its process dies.
          UserError: the function cannot be imported.
        """
        if self._process is None:
            self._start()
        try:
            assert self._process is not None and self._process.stdin is not None
            self._process.stdin.write(json.dumps(list(arguments)).encode() + b"\n")
            self._process.stdin.flush()
            reply = self._reply(self.seconds)
        except TimeoutError:
            self.close()
            raise Failed(f"took over {self.seconds:g} s") from None
        except (EOFError, OSError):
            self.close()
            raise Failed("its process died") from None
        if "error" in reply:
            raise Failed(reply["error"])
        return reply["value"]

    def close(self) -> None:
        """Kills the process and all that it started."""
        if self._process is None:
            return
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except OSError:
                pass
        self._process.wait()
        self._process = None

    def _start(self) -> None:
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-B", "-m", "ptjax.rewards.worker_child", self.function]
            + [str(self.seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**environment, "PYTHONPATH": path},
            start_new_session=True,
        )
        self._rest = b""
        try:
            reply = self._reply(START_SECONDS)
        except (TimeoutError, EOFError, OSError):
            reply = {"error": "its process does not start"}
        if "error" in reply:
            self.close()
            raise UserError(f"{self.function}: {reply['error']}")

    def _reply(self, seconds: float) -> dict[str, Any]:
        """The next line that the process writes."""
        assert self._process is not None and self._process.stdout is not None
        descriptor, end = self._process.stdout.fileno(), time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise TimeoutError
                read = os.read(descriptor, 1 << 16)
                if not read:
                    raise EOFError
                self._rest += read
        line, self._rest = self._rest.split(b"\n", 1)
        return json.loads(line)


class Pool:
    """Several workers that share a list of calls.

    Args:
      function: dotted path; it takes and returns what JSON holds.
      seconds: that a call may take.
      workers: processes.
    """

    def __init__(self, function: str, seconds: float, workers: int):
        self._workers = [Worker(function, seconds) for _ in range(workers)]
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)
        atexit.register(self.close)

    def map(self, calls: Sequence[Sequence[Any]]) -> list[Any]:
        """The value of each call, `Failed` where there is none.

        Raises:
          UserError: the function cannot be imported.
        """
        if not calls:
            return []
        with ThreadPoolExecutor(min(len(self._workers), len(calls))) as threads:
            return list(threads.map(self._call, calls))

    def close(self) -> None:
        """Kills the processes; the next call starts new ones."""
        for worker in self._workers:
            worker.close()

    def _call(self, arguments: Sequence[Any]) -> Any:
        worker = self._free.get()
        try:
            return worker.call(arguments)
        except Failed as failed:
            return failed
        finally:
            self._free.put(worker)


@functools.lru_cache(maxsize=16)
def pool(function: str, seconds: float, workers: int) -> Pool:
    """The workers of a function, which stay for the next call.

    Raises:
      UserError: no such limit or number.
    """
    if not seconds > 0 or isinstance(workers, bool) or not workers > 0:
        raise UserError(f"{function}: seconds={seconds!r}, workers={workers!r}: not above 0")
    return Pool(function, seconds, workers)
