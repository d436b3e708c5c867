"""Processes ask each other for bytes: each answers at a port of its own, at any time.

Batches are made in threads and processes that know nothing of the other hosts' steps, where
nothing can be collective: a host that lacks something asks the one that has it.
"""

import contextlib
import functools
import hmac
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple

import jax
from jax._src import distributed

from ptjax.errors import UserError
from ptjax.hosts import exchange
from ptjax.hosts.lifeline import keep_alive

_PATIENCE = 30.0
"""Seconds to reach a process that listens."""
_QUESTION, _ANSWER = struct.Struct("<QQ"), struct.Struct("<Q")
"""Who is to answer and the bytes that follow; the bytes that follow."""


class Peers:
    """The other processes, to be asked for what each of them has; made by all, in order.

    It can be sent to another process of the same host, which then asks by its own connections.

    Args:
      answer: from a question to its answer; called in threads.

    Raises:
      UserError: a process cannot be reached, said by all.
    """

    def __init__(self, answer: Callable[[bytes], bytes]):
        self._number = exchange.ticket()
        _server().answers[self._number] = answer
        self._places = _places()
        self._lines: dict[int, _Line] = {}
        self._lock = threading.Lock()
        exchange.from_each(self._reach_all)  # and then all are ready to answer

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lines": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {**state, "_lock": threading.Lock()}

    def ask(self, questions: Mapping[int, bytes]) -> dict[int, bytes]:
        """Asks processes, each its own question; once more where a connection has broken.

        Args:
          questions: by process.

        Returns:
          The answers by process.

        Raises:
          ConnectionError: one of them is gone.
        """
        with self._lock:
            try:
                return self._ask(questions)
            except OSError:
                return self._ask(questions)

    def _ask(self, questions: Mapping[int, bytes]) -> dict[int, bytes]:
        try:
            for process, question in questions.items():
                self._line(process).say(_QUESTION.pack(self._number, len(question)) + question)
            return {process: self._line(process).hear() for process in questions}
        except BaseException:
            self.close()  # what is still under way answers no later question
            raise

    def close(self) -> None:
        """Closes the connections; a later question opens new ones."""
        for line in self._lines.values():
            line.close()
        self._lines.clear()

    def _reach_all(self) -> None:
        for process in range(len(self._places)):
            if process == jax.process_index():
                continue
            try:
                self._line(process)
            except OSError as error:
                place = self._places[process]
                raise UserError(
                    f"process {jax.process_index()} cannot reach process {process} at "
                    f"{place.host}:{place.port} ({error.strerror or error}), which has a part of "
                    "the data: let the hosts of the run reach each other at all ports"
                ) from error

    def _line(self, process: int) -> "_Line":
        if process not in self._lines:
            host, port, token = self._places[process]
            line = _Line(socket.create_connection((host, port), timeout=_PATIENCE), process)
            line.say(token.encode())
            self._lines[process] = line
        return self._lines[process]


class _Place(NamedTuple):
    """Where a process answers, and what to say first."""

    host: str
    port: int
    token: str


class _Line:
    """A connection to a process."""

    def __init__(self, connection: socket.socket, process: int):
        keep_alive(connection)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._process = connection, process
        self._file: BinaryIO = connection.makefile("rb")

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def say(self, words: bytes) -> None:
        self._socket.sendall(words)

    def hear(self) -> bytes:
        (size,) = _ANSWER.unpack(self._exactly(_ANSWER.size))
        return self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        heard = self._file.read(size)
        if len(heard) < size:
            raise ConnectionError(f"process {self._process} is gone and with it its part of data")
        return heard


class _Server:
    """Answers whoever knows the token, until this process ends."""

    def __init__(self):
        self.token = secrets.token_hex(16)
        self.answers: dict[int, Callable[[bytes], bytes]] = {}
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        self._socket = socket.create_server(
            ("", 0), family=family, backlog=1024, dualstack_ipv6=family != socket.AF_INET
        )
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, name="peers", daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as heard:
            if not hmac.compare_digest(heard.read(len(self.token)), self.token.encode()):
                return
            keep_alive(connection)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while len(head := heard.read(_QUESTION.size)) == _QUESTION.size:
                number, size = _QUESTION.unpack(head)
                answer = self.answers[number](heard.read(size))
                connection.sendall(_ANSWER.pack(len(answer)) + answer)


@functools.cache
def _server() -> _Server:
    return _Server()


@functools.cache
def _places() -> list[_Place]:
    """Where every process answers."""
    return [_Place(*place) for place in exchange.from_each(_own_place)]


def _own_place() -> _Place:
    """The address is the one by which this machine reaches process 0, or is reached as that."""
    host, _, port = str(distributed.global_state.coordinator_address).rpartition(":")
    host = host.strip("[]")
    if jax.process_index() != 0:
        with socket.create_connection((host, int(port)), timeout=_PATIENCE) as probe:
            host = probe.getsockname()[0]
    return _Place(host, _server().port, _server().token)
