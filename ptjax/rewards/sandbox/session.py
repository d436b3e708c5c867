"""One sandbox seen from outside: started, given programs one after another, and ended whole."""

import dataclasses
import json
import os
import select
import signal
import subprocess
import time
from types import TracebackType
from typing import Any, Self

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


class Session:
    """A sandbox, from its start to its end; used in a `with`, by one thread.

    Args:
      limits: of each program that runs in it.
      python: path of the Python that programs run on; empty: ptjax's own, without its packages.

    Raises:
      SandboxError: it does not start.
      UserError: bubblewrap is not installed.
    """

    def __init__(self, limits: Limits, python: str = ""):
        self._limits = limits
        self._user = bubblewrap.next_user()
        self._buffer = bytearray()
        self._dead = False
        self._start(bubblewrap.interpreter(python))

    def _start(self, python: bubblewrap.Interpreter) -> None:
        orders, self._orders = os.pipe()
        self._reports, reports = os.pipe()
        filter, write = os.pipe()
        told, info = os.pipe()
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
            os.close(self._orders)
            os.close(self._reports)
            os.close(told)
            raise SandboxError(f"bubblewrap does not run: {error}") from error
        finally:
            for end in ends.values():
                os.close(end)
        self._first = -1
        with os.fdopen(told, "rb") as file:
            said = file.read()
        try:
            self._first = os.pidfd_open(json.loads(said)["child-pid"])
            ready = self._receive(START_SECONDS)
        except (ValueError, ProcessLookupError):
            ready = None
        if ready != {"ready": True}:
            reason = self._close()
            raise SandboxError(f"the sandbox did not start: {reason or 'no word from it'}")

    def __enter__(self) -> Self:
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
        self.start("run", source=source, input=text)
        found = self.listen()
        return found if isinstance(found, Ended) else Ended("forged")

    def start(self, what: str, **order: Any) -> None:
        """Starts a program: to be run, or, as `serve` or `judge`, to be spoken with."""
        limits = dataclasses.asdict(self._limits)
        self._until = time.monotonic() + self._limits.wall_seconds + GRACE_SECONDS
        self._send({"do": "start", "as": what, "uid": self._user, "limits": limits, **order})

    def ask(self, line: Any) -> None:
        """Says something to the program."""
        self._send({"do": "ask", "line": line})

    def stop(self) -> Ended:
        """Ends the program."""
        self._send({"do": "stop"})
        while True:
            found = self.listen()
            if isinstance(found, Ended):
                return found

    def listen(self) -> str | Ended:
        """The next line that the program says, or how it ended."""
        said = self._receive(self._until - time.monotonic())
        if said is None:
            self._dead = True
            return Ended("died")
        return said["line"] if "line" in said else Ended(**said)

    @property
    def dead(self) -> bool:
        """Whether the sandbox is gone; another is needed for what is left to do."""
        return self._dead

    def _send(self, said: dict[str, Any]) -> None:
        data = memoryview(json.dumps(said).encode() + b"\n")
        while data and not self._dead:
            try:
                data = data[os.write(self._orders, data) :]
            except BrokenPipeError:
                self._dead = True

    def _receive(self, seconds: float) -> Any:
        """The next report; None: none came in time, or none will come."""
        until = time.monotonic() + seconds
        while not self._dead and b"\n" not in self._buffer[-65536:]:
            wait = max(0.0, until - time.monotonic())
            if not select.select([self._reports], [], [], wait)[0]:
                return None
            data = os.read(self._reports, 65536)
            if not data:
                return None
            self._buffer += data
        if self._dead:
            return None
        line, _, rest = self._buffer.partition(b"\n")
        self._buffer = rest
        return json.loads(line)

    def _close(self) -> str:
        """Kills process 1, and with it all; returns what bubblewrap had to say."""
        for end in (self._orders, self._reports):
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
            self._process.kill()
            _, said = self._process.communicate()
        return said.decode("utf-8", "replace").strip().replace("\n", "; ")[:300]
