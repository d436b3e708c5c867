"""One program held to its limits, as process 1 sees it."""

import os
import select
import time

HOME = "/tmp"
CHUNK = 65536
KILL = 9
LOOK_SECONDS = 0.02
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

    def __init__(self, pid: int, order: dict, ends: dict, poll: select.poll):
        self.pid, self.limits, self._ends, self._poll = pid, order["limits"], ends, poll
        self.asks = order["as"] == "judge"
        self.due, self.over = 0, ""
        self._began = self._looked = time.monotonic()
        self._room = int(self.limits["output_kb"] * 1024)
        self._kept = {"out": bytearray(), "err": bytearray(), "answer": bytearray()}
        self._left = {"in": bytearray(order["input"]), "ask": bytearray()}
        self._names = {end: name for name, end in ends.items()}
        self._exited = os.pidfd_open(pid)
        poll.register(self._exited, select.POLLIN)
        for name in self._kept:
            poll.register(ends[name], select.POLLIN)
        poll.register(ends["in"], select.POLLOUT)

    def ask(self, line: bytes) -> None:
        """Hands the program a line on its channel."""
        if not self._left["ask"]:
            self._poll.register(self._ends["ask"], select.POLLOUT)
        self._left["ask"] += line
        self.due += 1

    def step(self, ready: list) -> list:
        """Moves what can be moved; returns the lines that the program said on its channel."""
        for end, _ in ready:
            name = self._names.get(end)
            if end == self._exited:
                self.over = self.over or "exit"
            elif name in self._kept:
                self._read(name)
            elif name is not None:
                self._write(name)
        self.over = self.over or self._beyond()
        *lines, self._kept["answer"] = self._kept["answer"].split(b"\n")
        self.due -= len(lines)
        if self.due < 0 and not self.asks:
            self.over = "forged"
            return []
        return lines

    def end(self) -> tuple:
        """Kills all there is in the sandbox; returns why, status, seconds, output and errors."""
        status = kill_all(self.pid)
        for name in ("out", "err"):
            while self._read(name):
                pass
        for end in (*self._names, self._exited):
            try:
                self._poll.unregister(end)
            except KeyError:
                pass
            os.close(end)
        over = "output" if self.over == "exit" and self._full() else self.over
        seconds = time.monotonic() - self._began
        return over, status, seconds, self._kept["out"], self._kept["err"]

    def _full(self) -> bool:
        return any(len(kept) > self._room for kept in self._kept.values())

    def _read(self, name: str) -> bool:
        """Reads some; False: nothing is there now."""
        if len(self._kept[name]) > self._room or self._ends[name] not in self._names:
            return False
        try:
            data = os.read(self._ends[name], CHUNK)
        except BlockingIOError:
            return False
        self._kept[name] += data
        if not data:
            self._close(name)
        return bool(data)

    def _write(self, name: str) -> None:
        left = self._left[name]
        try:
            done = os.write(self._ends[name], left[:CHUNK]) if left else 0
        except BlockingIOError:
            return
        except BrokenPipeError:
            done = len(left)
        del left[:done]
        if not left and name == "in":
            self._close(name)
        elif not left:
            self._poll.unregister(self._ends[name])

    def _close(self, name: str) -> None:
        end = self._ends[name]
        self._poll.unregister(end)
        del self._names[end]
        os.close(end)

    def _beyond(self) -> str:
        """The limit that is passed."""
        if self._full():
            return "output"
        now = time.monotonic()
        if now - self._began > self.limits["wall_seconds"]:
            return "time"
        if now - self._looked < LOOK_SECONDS:
            return ""
        self._looked = now
        memory, seconds = usage()
        if memory > self.limits["memory_mb"] * 2**20:
            return "memory"
        if seconds > self.limits["cpu_seconds"]:
            return "cpu"
        disk = os.statvfs(HOME)
        return "files" if disk.f_files - disk.f_ffree > self.limits["files"] else ""


def usage() -> tuple:
    """Bytes of their own memory and seconds of processor time of all processes but this one.

    A process's seconds include those of its children that it has waited for.
    """
    pages, ticks = 0, 0
    for name in os.listdir("/proc"):
        if not name.isdecimal() or name == "1":
            continue
        try:
            with open(f"/proc/{name}/statm", "rb") as file:
                _, resident, shared, *_ = file.read().split()
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        pages += int(resident) - int(shared)
        ticks += sum(map(int, fields[11:15]))
    return pages * _PAGE, ticks / _TICKS_A_SECOND


def kill_all(first: int) -> int | None:
    """Kills every process but this one and waits until they are gone.

    Returns:
      The exit status of one of them.
    """
    found = None
    try:
        os.kill(-1, KILL)
    except ProcessLookupError:
        pass
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            return found
        if pid == first:
            found = os.waitstatus_to_exitcode(status)
