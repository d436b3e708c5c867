"""A host with things to steal and to break, and a look at what attacks made of it."""

import contextlib
import os
import platform
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ptjax.rewards.code_grade import Outcome, grade
from ptjax.rewards.code_tests import Test, read
from ptjax.rewards.sandbox import seccomp
from ptjax.rewards.sandbox.limits import Limits
from tests.rewards.sandbox.attacks import ATTACKS, Attack

LIMITS = Limits(
    cpu_seconds=0.4,
    wall_seconds=1.0,
    memory_mb=256,
    processes=16,
    disk_mb=8,
    files=500,
    output_kb=128,
)
_LATER = {
    "io_uring_setup": 425,
    "open_tree": 428,
    "fsopen": 430,
    "clone3": 435,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "memfd_secret": 447,
    "clone": (56, 220)[platform.machine() == "aarch64"],
}


def numbers() -> dict[str, int | None]:
    """System calls by name, on this machine."""
    column = int(platform.machine() == "aarch64")
    return {name: both[column] for name, both in seccomp.DENIED.items()} | _LATER


@dataclass
class Host:
    """What the attacks are after.

    Attributes:
      words: what stands in an attack's source for a name in capitals.
      salt: the right answer, which cannot be computed.
    """

    words: dict[str, str]
    salt: str
    listeners: list[socket.socket]
    victim: subprocess.Popen[bytes]
    secret: str
    folder: str
    before: set[int]

    def source(self, attack: Attack) -> str:
        """The program as it is handed in."""
        text = attack.source
        for name, word in self.words.items():
            text = text.replace(name, word)
        return text

    def tests(self, kind: str) -> list[Test]:
        """Tests of a kind, whose answer is the salt."""
        salt = self.salt
        rows = {
            "prints": {"inputs": ["3 4\n"], "outputs": [salt]},
            "returns": {"inputs": [[3], [4]], "outputs": [salt, [salt]], "fn_name": "answer"},
            "holds": {
                "test": f"def check(candidate):\n    value = candidate(3)\n"
                f"    assert value == {salt!r}\n    assert candidate(4) == {salt!r}, 'no'\n"
                f"    assert not (value != {salt!r})\n    assert value in [{salt!r}]\n",
                "entry_point": "answer",
            },
        }
        return read(rows[kind])

    def attack(self, attack: Attack, python: str = "") -> dict[str, list[Outcome]]:
        """What came of an attack, by the kind of tests."""
        source = self.source(attack)
        return {k: grade(source, self.tests(k), LIMITS, python=python) for k in attack.kinds}

    def touched(self) -> list[str]:
        """Marks that attacks left on the host."""
        found = []
        for one in self.listeners:
            with contextlib.suppress(BlockingIOError):
                if one.type == socket.SOCK_DGRAM:
                    one.recv(1)
                else:
                    one.accept()
                found.append(f"{one.getsockname()} was reached")
        if self.victim.poll() is not None:
            found.append("the victim died")
        with open(self.secret) as file:
            if file.read() != self.salt:
                found.append("the secret was written")
        if {*os.listdir(self.folder)} != {"secret", "unix"}:
            found.append("a file was left")
        return found

    def leftovers(self, seconds: float = 2.0) -> set[int]:
        """Processes of sandboxes that are still there."""
        until = time.monotonic() + seconds
        while (left := _shut_in() - self.before) and time.monotonic() < until:
            time.sleep(0.02)
        return left


def _shut_in() -> set[int]:
    """Processes in a pid namespace inside ours, and bubblewraps."""
    found = set()
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/status") as file:
            lines = dict(line.split(":", 1) for line in file.read().splitlines() if ":" in line)
            if len(lines.get("NSpid", "").split()) > 1 or lines["Name"].strip() == "bwrap":
                found.add(int(name))
    return found


@contextlib.contextmanager
def host() -> Iterator[Host]:
    """A host, for as long as it is attacked."""
    salt = secrets.token_hex(16)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="host-"))
        os.chmod(folder, 0o777)
        path = os.path.join(folder, "secret")
        with open(path, "w") as file:
            file.write(salt)
        os.chmod(path, 0o666)
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0)))]
        port = listeners[0].getsockname()[1]
        datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        datagrams.bind(("127.0.0.1", port))
        for name in (f"{folder}/unix", f"\0{salt[:8]}-abstract"):
            one = stack.enter_context(socket.socket(socket.AF_UNIX))
            one.bind(name)
            one.listen()
            listeners.append(one)
        listeners.append(datagrams)
        for one in listeners:
            one.setblocking(False)
        victim = subprocess.Popen(["/bin/sleep", "600"])
        stack.callback(victim.wait)
        stack.callback(victim.kill)
        os.environ["SANDBOX_TOKEN"] = token = secrets.token_hex(8)
        stack.callback(os.environ.pop, "SANDBOX_TOKEN")
        words = {
            "SALT_HALF": repr(salt[:8]),
            "SECRET": path,
            "FOLDER": folder,
            "TOKEN": token,
            "VICTIM": str(victim.pid),
            "PORT": str(port),
            "UNIX": f"{folder}/unix",
            "ABSTRACT": f"{salt[:8]}-abstract",
            "NUMBER": repr(numbers()),
        }
        yield Host(words, salt, listeners, victim, path, folder, _shut_in())


def verdict(attack: Attack, outcomes: dict[str, list[Outcome]]) -> dict[str, list[str]]:
    """What is wrong with an attack's outcomes: escapes, false passes, limits that did not bite."""
    wrong: dict[str, list[str]] = {"escapes": [], "false passes": [], "unexpected": []}
    for kind, found in outcomes.items():
        for one in found:
            if "ESCAPED" in one.out + one.err:
                wrong["escapes"].append(f"{attack.name} ({kind}): {one.out[:200]}")
            if one.passed:
                wrong["false passes"].append(f"{attack.name} ({kind})")
        if attack.why and found[0].why not in attack.why:
            wrong["unexpected"].append(f"{attack.name} ({kind}): {found[0].why}")
    return wrong


def all_attacks() -> list[Attack]:
    """Those whose system calls this machine has."""
    known = numbers()
    return [
        attack
        for attack in ATTACKS
        if not attack.name.startswith("calls: ")
        or known.get(attack.name.removeprefix("calls: ")) is not None
    ]
