"""A process of a run that ends before its time ends the others, and they say which one it was.

Each holds a connection to process 0, which tells all what one says. The system closes it when the
process dies, whatever it died of; where jax's service would wait for 100 seconds of silence, and
then abort with a page of its own. A machine that is gone without a word is noticed by the silence
of its network, within `SILENCE` seconds.
"""

import contextlib
import json
import logging
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from ptjax.errors import UserError

_log = logging.getLogger("ptjax")

LOST = 5
"""The exit code of a process that ends because another one is gone."""
SILENCE = 40
"""Seconds after which a machine that answers nothing counts as gone."""
GRACE = 10.0
"""Seconds for the same mistake to be found here, where another process stopped because of one."""
_LINGER = 5.0
"""Seconds beyond those of grace that process 0, where jax's service runs, waits for the others."""
_KEY = "ptjax/lifeline"


def keep_alive(line: socket.socket) -> None:
    """Has the system look every few seconds whether the other end is there.

    No firewall then forgets the connection, and it ends where the machine is gone.
    """
    line.settimeout(None)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("KEEPIDLE", SILENCE // 4), ("KEEPINTVL", SILENCE // 4), ("KEEPCNT", 3)):
        if hasattr(socket, f"TCP_{name}"):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{name}"), value)


class Stop(NamedTuple):
    """That a process ended before its time; `why` is None where it died without a word."""

    process: int
    host: str
    why: str | None = None
    code: int = LOST

    def error(self, processes: int) -> UserError:
        """What the others say."""
        who = f"process {self.process} of {processes} (on {self.host})"
        if self.why is None:
            return UserError(
                f"{who} is gone: it was killed, it crashed, or its machine did; start all again to "
                "go on from the last checkpoint",
                exit_code=self.code,
            )
        return UserError(f"{who} stopped: {self.why}", exit_code=self.code)


@dataclass
class _Line:
    """One end of a connection, and what is known of the process at the other."""

    socket: socket.socket
    process: int | None = None
    host: str = ""
    rest: bytes = b""
    is_over: bool = False
    """Whether it may close: its process said that it is done, or why it stops."""

    def say(self, word: dict[str, Any]) -> None:
        """Sends a word; one that cannot be sent has nobody to hear it."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(word).encode() + b"\n")


class Lifeline:
    """The connections of this process, made once by all; `leave`, or `fail` and `end`, end them.

    Args:
      store: the key-value store of `jax.distributed`.
      address: host and port of its service, which runs in process 0.
      process: this one's number.
      processes: how many there are.
    """

    def __init__(self, store: Any, address: str, process: int, processes: int):
        self.process, self.processes = process, processes
        self._host = socket.gethostname()
        self._selector = selectors.DefaultSelector()
        self._lines: list[_Line] = []
        self._stop: Stop | None = None
        self._stopped = threading.Event()
        self._leaves = threading.Event()
        self._speaks = threading.Lock()
        if process == 0:
            self._token = secrets.token_hex(8)
            family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
            server = socket.create_server(
                ("", 0), family=family, backlog=processes, dualstack_ipv6=family != socket.AF_INET
            )
            self._selector.register(server, selectors.EVENT_READ, None)
            store.key_value_set(_KEY, f"{server.getsockname()[1]} {self._token}")
        else:
            port, self._token = store.blocking_key_value_get(_KEY, 60_000).split()
            self._connect(address.rpartition(":")[0].strip("[]"), int(port))
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    def leave(self) -> None:
        """Says that this process has done its part; it goes on watching until it ends."""
        self._leaves.set()
        self._tell({"done": True})

    def fail(self, why: str, code: int) -> None:
        """Tells the others why this process stops, with which exit code."""
        self._stop = Stop(self.process, self._host, why, code)  # the others only follow
        self._leaves.set()
        self._tell(self._stop._asdict())

    def end(self, code: int) -> NoReturn:
        """Ends this process without a word to jax, which would wait for those that are gone."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        until = time.monotonic() + GRACE + _LINGER
        while self.process == 0 and self._lines and time.monotonic() < until:
            time.sleep(0.05)
        os._exit(code)

    def verdict(self, seconds: float) -> UserError | None:
        """What ended another process, where one ends within so many seconds."""
        self._stopped.wait(seconds)
        return self._stop and self._stop.error(self.processes)

    def speaks(self) -> bool:
        """Whether the caller is the one to say why this process ends: only one is ever told so."""
        return self._speaks.acquire(blocking=False)

    def _connect(self, host: str, port: int) -> None:
        try:
            line = _Line(socket.create_connection((host, port), timeout=30), 0, host)
        except OSError as error:
            _log.warning(
                "process 0 cannot be reached at %s:%d (%s): of a process that dies the others will "
                "know after 100 seconds, by jax's own words",
                *(host, port, error),
            )
            return
        self._add(line)
        self._greet(line)

    def _greet(self, line: _Line) -> None:
        line.say({"process": self.process, "host": self._host, "token": self._token})

    def _add(self, line: _Line) -> None:
        keep_alive(line.socket)
        self._lines.append(line)
        self._selector.register(line.socket, selectors.EVENT_READ, line)

    def _watch(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    assert isinstance(key.fileobj, socket.socket)
                    with contextlib.suppress(OSError):
                        self._add(_Line(key.fileobj.accept()[0]))
                else:
                    self._hear(key.data)

    def _hear(self, line: _Line) -> None:
        try:
            heard = line.socket.recv(65536)
        except OSError:
            heard = b""
        *words, line.rest = (line.rest + heard).split(b"\n")
        for word in words:  # whatever else connects here, a scan of ports, says no such words
            with contextlib.suppress(ValueError, TypeError, KeyError):
                self._read(line, json.loads(word))
        if heard:
            return
        self._selector.unregister(line.socket)
        self._lines.remove(line)
        line.socket.close()
        if line.process is not None and not line.is_over:
            self._ended(Stop(line.process, line.host))

    def _read(self, line: _Line, word: dict[str, Any]) -> None:
        if "token" in word:
            if word["token"] == self._token:
                line.process, line.host = word["process"], word["host"]
                if self.process == 0:
                    self._greet(line)
        elif line.process is None:
            return  # whoever that is, it is none of ours
        elif "done" in word:
            line.is_over = True
        else:
            line.is_over = True
            self._ended(Stop(**word))

    def _ended(self, stop: Stop) -> None:
        """Another process ended: this one does, by itself or after its time of grace."""
        if self._stop is not None:
            return
        self._stop = stop
        self._stopped.set()
        if self.process == 0:
            self._tell(stop._asdict())
        elif stop.why is None:  # jax's abort is under way where that was process 0
            self._follow(stop)
        threading.Thread(target=self._follow, args=(stop,), daemon=True).start()

    def _follow(self, stop: Stop) -> None:
        if stop.why is not None and self._leaves.wait(GRACE):
            time.sleep(GRACE)  # what ends it is under way
        error = stop.error(self.processes)
        if self.speaks():
            print(f"error: {error}", file=sys.stderr)
            self.end(error.exit_code)

    def _tell(self, word: dict[str, Any]) -> None:
        for line in list(self._lines):
            line.say(word)
