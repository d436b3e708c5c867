"""One sandbox seen from outside: started, given programs one after another, and ended whole."""

import dataclasses
import json
import marshal
import os
import select
import signal
import subprocess
import time
from types import TracebackType
from typing import Any

from ptjax.rewards.sandbox import bubblewrap, seccomp
from ptjax.rewards.sandbox.limits import Limits

START_SECONDS = 20.0
GRACE_SECONDS = 5.0
"""What process 1 is given beyond a program's time before the whole sandbox is killed."""


class SandboxError(RuntimeError):
    """A sandbox did not start: it says nothing of the program."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a program ended.

    Attributes:
      over: `exit`; a limit that it passed: `time`, `cpu`, `memory`, `files`, `output`; `stopped` by
        us; `forged`, it answered unasked; `died`, the sandbox with it.
      status: its exit status, negative for a signal; None where it is not known.
      out: its standard output.
      err: its standard error.
      seconds: on the clock.
    """

    over: str
    status: int | None = None
    out: str = ""
    err: str = ""
    seconds: float = 0.0


class _Gone(Exception):
    """Process 1 is not heard of any more."""


class Session:
    """A sandbox, from its start to its end; used in a `with`, by one thread.

    Args:
      limits: of each program that runs in it.
      python: path of the Python that programs run on; empty: ptjax's own, without its packages.

    Raises:
      SandboxError: bubblewrap does not run.
      UserError: it is not installed.
    """

    def __init__(self, limits: Limits, python: str = ""):
        self._limits = limits
        self._user = bubblewrap.next_user()
        self._buffer = bytearray()
        self._ready = self._dead = self._closed = False
        self._first = -1
        self._launch(bubblewrap.interpreter(python))

    def _launch(self, python: bubblewrap.Interpreter) -> None:
        orders, self._orders = os.pipe()
        self._reports, reports = os.pipe()
        filter, write = os.pipe()
        self._told, info = os.pipe()
        with os.fdopen(write, "wb") as file:
            file.write(seccomp.program())
        ends = {"filter": filter, "info": info, "orders": orders, "reports": reports}
        try:
            self._process = subprocess.Popen(
                bubblewrap.command(python, self._limits, **ends),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={},
                pass_fds=tuple(ends.values()),
                start_new_session=True,
            )
        except OSError as error:
            for end in (self._orders, self._reports, self._told):
                os.close(end)
            raise SandboxError(f"bubblewrap does not run: {error}") from error
        finally:
            for end in ends.values():
                os.close(end)

    def _wait(self) -> None:
        """Waits until process 1 is there; it takes its time while others start."""
        self._until = time.monotonic() + START_SECONDS
        try:
            self._first = os.pidfd_open(json.loads(self._read_told())["child-pid"])
            self._ready = self._take(b"\n") == b"ready\n"
        except (ValueError, ProcessLookupError, _Gone):
            pass
        if not self._ready:
            reason = self._close()
            raise SandboxError(f"the sandbox did not start: {reason or 'no word from it'}")

    def _read_told(self) -> bytes:
        """All that bubblewrap tells; it comes in pieces."""
        said = b""
        while select.select([self._told], [], [], self._until - time.monotonic())[0]:
            piece = os.read(self._told, 4096)
            if not piece:
                break
            said += piece
        return said

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def run(self, source: str, text: str) -> Ended:
        """Runs a program on its standard input to its end."""
        self.start("run", source=source, input=text.encode("utf-8", "surrogateescape"))
        found = self.listen()
        return found if isinstance(found, Ended) else Ended("forged")

    def start(self, what: str, *, source: str, input: bytes = b"", **more: str | None) -> None:
        """Starts a program: to `run`, or, as `serve` or `judge`, to be spoken with.

        Raises:
          SandboxError: the sandbox did not start.
        """
        if not self._ready:
            self._wait()
        limits = dataclasses.asdict(self._limits)
        self._until = time.monotonic() + self._limits.wall_seconds + GRACE_SECONDS
        order: dict[str, Any] = {"source": source, "input": input, **more}
        order |= {"as": what, "uid": self._user, "limits": limits}
        self._send("start", marshal.dumps(order, 2))

    def ask(self, line: str) -> None:
        """Says a line to the program."""
        self._send("ask", line.encode() + b"\n")

    def stop(self) -> Ended:
        """Ends the program."""
        self._send("stop", b"")
        while True:
            found = self.listen()
            if isinstance(found, Ended):
                return found

    def listen(self) -> str | Ended:
        """The next line that the program says, or how it ended."""
        try:
            what, *words = self._take(b"\n").split()
            rest = [self._take(int(n)).decode("utf-8", "replace") for n in words if what == b"line"]
            if rest:
                return rest[0]
            over, status, seconds, *lengths = (word.decode() for word in words)
            out, err = (self._take(int(n)).decode("utf-8", "replace") for n in lengths)
        except _Gone:
            self._dead = True
            return Ended("died")
        known = None if status == "None" else int(status)
        return Ended(over, known, out, err, float(seconds))

    @property
    def dead(self) -> bool:
        """Whether the sandbox is gone; another is needed for what is left to do."""
        return self._dead

    def _send(self, what: str, body: bytes) -> None:
        data = memoryview(f"{what} {len(body)}\n".encode() + body)
        while data and not self._dead:
            try:
                data = data[os.write(self._orders, data) :]
            except BrokenPipeError:
                self._dead = True

    def _take(self, what: int | bytes) -> bytes:
        """So many bytes of the reports, or all up to and with an end.

        Raises:
          _Gone: they do not come in time.
        """
        while True:
            if isinstance(what, bytes):
                end = self._buffer.find(what) + len(what)
                whole = end >= len(what)
            else:
                end = what
                whole = len(self._buffer) >= what
            if whole:
                taken = bytes(self._buffer[:end])
                del self._buffer[:end]
                return taken
            wait = self._until - time.monotonic()
            if self._dead or wait <= 0 or not select.select([self._reports], [], [], wait)[0]:
                raise _Gone
            data = os.read(self._reports, 65536)
            if not data:
                raise _Gone
            self._buffer += data

    def _close(self) -> str:
        """Kills process 1, and with it all; returns what bubblewrap had to say."""
        if self._closed:
            return ""
        self._closed = True
        for end in (self._orders, self._reports, self._told):
            os.close(end)
        if self._first >= 0:
            try:
                signal.pidfd_send_signal(self._first, signal.SIGKILL)
            except ProcessLookupError:
                pass
            os.close(self._first)
        try:
            _, said = self._process.communicate(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            # Not yet a new session: bubblewrap and its child are one group.
            os.killpg(self._process.pid, signal.SIGKILL)
            _, said = self._process.communicate()
        return said.decode("utf-8", "replace").strip().replace("\n", "; ")[:300]
