"""One program held to its limits, as process 1 sees it."""

import contextlib
import os
import selectors
import signal
import time
from typing import Any

HOME = "/tmp"
CHUNK = 65536
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Run:
    """One program at work.

    Attributes:
      pid: its first process.
      limits: a `Limits` as a dict.
      asks: whether it may speak on its channel unasked, as a judge does.
      due: lines that it owes.
      over: why it is over, once it is.
    """

    def __init__(self, pid: int, order: dict[str, Any], ends: dict[str, int]):
        self.pid, self.limits, self._ends = pid, order["limits"], ends
        self.asks = order["as"] == "judge"
        self._text = order.get("input", "").encode("utf-8", "surrogateescape")
        self.began = time.monotonic()
        self.kept = {"out": bytearray(), "err": bytearray(), "answer": bytearray()}
        self.over = ""
        self.due = 0
        self._asked = bytearray()
        self._room = int(self.limits["output_kb"] * 1024)
        self._select = selectors.DefaultSelector()
        self._exited = os.pidfd_open(pid)
        self._select.register(self._exited, selectors.EVENT_READ, "exit")
        for name in self.kept:
            self._select.register(ends[name], selectors.EVENT_READ, name)
        self._writes("in", ends["in"])

    @property
    def selector(self) -> Any:
        """What becomes readable when there is something to do."""
        return self._select

    def ask(self, line: bytes) -> None:
        """Hands the program a line on its channel."""
        if not self._asked:
            self._writes("ask", self._ends["ask"])
        self._asked += line
        self.due += 1

    def step(self) -> list[bytes]:
        """Moves what can be moved; returns the lines that the program said on its channel."""
        for key, _ in self._select.select(0):
            if key.data == "exit":
                self.over = self.over or "exit"
            elif key.data in self.kept:
                self._read(key.data)
            else:
                self._write(key.data)
        self.over = self.over or self._beyond()
        *lines, rest = self.kept["answer"].split(b"\n")
        self.kept["answer"] = bytearray(rest)
        return [bytes(line) for line in lines]

    def end(self) -> dict[str, Any]:
        """Kills all there is in the sandbox, and says how it went."""
        status = kill_all(self.pid)
        for name in ("out", "err"):
            while self._read(name):
                pass
        self._select.close()
        for end in (*self._ends.values(), self._exited):
            os.close(end)
        texts = {name: self.kept[name].decode("utf-8", "replace") for name in ("out", "err")}
        over = "output" if self.over == "exit" and self._full() else self.over
        seconds = time.monotonic() - self.began
        return {"over": over, "status": status, "seconds": round(seconds, 4), **texts}

    def _full(self) -> bool:
        return any(len(kept) > self._room for kept in self.kept.values())

    def _read(self, name: str) -> bool:
        """Reads some; False: nothing is there now."""
        if len(self.kept[name]) > self._room:
            return False
        try:
            data = os.read(self._ends[name], CHUNK)
        except BlockingIOError:
            return False
        self.kept[name] += data
        if not data and self._ends[name] in self._select.get_map():
            self._select.unregister(self._ends[name])
        return bool(data)

    def _writes(self, name: str, end: int) -> None:
        self._select.register(end, selectors.EVENT_WRITE, name)

    def _write(self, name: str) -> None:
        left = self._text if name == "in" else self._asked
        try:
            done = os.write(self._ends[name], left[:CHUNK]) if left else 0
        except BlockingIOError:
            return
        except BrokenPipeError:
            done = len(left)
        if name == "in":
            self._text = self._text[done:]
        else:
            del self._asked[:done]
        if done == len(left):
            self._select.unregister(self._ends[name])
            if name == "in":
                os.close(self._ends.pop("in"))

    def _beyond(self) -> str:
        """The limit that is passed."""
        if self._full():
            return "output"
        if time.monotonic() - self.began > self.limits["wall_seconds"]:
            return "time"
        memory, cpu = usage()
        if memory > self.limits["memory_mb"] * 2**20:
            return "memory"
        if cpu > self.limits["cpu_seconds"]:
            return "cpu"
        disk = os.statvfs(HOME)
        return "files" if disk.f_files - disk.f_ffree > self.limits["files"] else ""


def usage() -> tuple[float, float]:
    """Bytes of their own memory and seconds of processor time of all processes but this one.

    A process's seconds include those of its children that it has waited for.
    """
    memory, ticks = 0, 0
    for name in os.listdir("/proc"):
        if not name.isdecimal() or name == "1":
            continue
        with contextlib.suppress(OSError):
            with open(f"/proc/{name}/statm", "rb") as file:
                _, resident, shared, *_ = file.read().split()
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            memory += int(resident) - int(shared)
            ticks += sum(map(int, fields[11:15]))
    return memory * _PAGE, ticks / _TICKS_A_SECOND


def kill_all(first: int) -> int | None:
    """Kills every process but this one and waits until they are gone.

    Returns:
      The exit status of one of them.
    """
    found = None
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.wait()
            if pid == first:
                found = os.waitstatus_to_exitcode(status)
    return found
