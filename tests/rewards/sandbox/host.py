"""A host with things to steal and to break, and a look at what attacks made of it."""

import contextlib
import json
import os
import platform
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ptjax.rewards.code_grade import Outcome, grade
from ptjax.rewards.code_tests import Test, read
from ptjax.rewards.sandbox import bubblewrap, seccomp
from ptjax.rewards.sandbox.limits import Limits
from tests.rewards.sandbox.attacks import ATTACKS, ENDLESS, Attack

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
        limits = LIMITS
        if attack.why and not {*attack.why} & {*ENDLESS}:  # on a slow machine the clock is first
            limits = replace(limits, wall_seconds=30.0, cpu_seconds=10.0)
        return {k: grade(source, self.tests(k), limits, python=python) for k in attack.kinds}

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

    def leftovers(self, seconds: float = 5.0) -> set[int]:
        """Processes of sandboxes that are there now, and still are when the time is over.

        Those of other tests' sandboxes, which may run beside this one, end within it.
        """
        until = time.monotonic() + seconds
        left = _shut_in() - self.before
        while left and time.monotonic() < until:
            time.sleep(0.02)
            left &= _shut_in()
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
            "PATHNAME": f"{folder}/unix",
            "ABSTRACT": f"{salt[:8]}-abstract",
            "NUMBER": repr(numbers()),
        }
        yield Host(words, salt, listeners, victim, path, folder, _shut_in())


@dataclass
class Found:
    """What came of many attacks.

    Attributes:
      attacks: their number.
      programs: programs that were run for them.
      escapes: attacks that got something, with what.
      passes: attacks that a test let pass.
      loose: limits that did not bite.
      leftovers: processes that are still there.
    """

    attacks: int = 0
    programs: int = 0
    escapes: list[str] = field(default_factory=list)
    passes: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    leftovers: list[int] = field(default_factory=list)

    def add(self, attack: Attack, outcomes: dict[str, list[Outcome]]) -> None:
        """Counts what came of one."""
        self.attacks += 1
        for kind, found in outcomes.items():
            self.programs += len(found)
            for one in found:
                if "ESCAPED" in one.out + one.err:
                    self.escapes.append(f"{attack.name} ({kind}): {one.out[:200]}")
                if one.passed:
                    self.passes.append(f"{attack.name} ({kind})")
            if attack.why and found[0].why not in attack.why:
                self.loose.append(f"{attack.name} ({kind}): {found[0].why}")


def run_all(*, python: str = "", kinds: int = 3, workers: int = 6) -> Found:
    """Runs all attacks as the user that this is.

    Args:
      python: that programs run on.
      kinds: of tests that each is given, at most.
      workers: attacks at one time; many of them wait for their end.
    """
    found = Found()
    with host() as one, ThreadPoolExecutor(workers) as pool:
        attacks = [replace(attack, kinds=attack.kinds[-kinds:]) for attack in all_attacks()]
        for attack, made in zip(
            attacks, pool.map(lambda a: one.attack(a, python), attacks), strict=True
        ):
            found.add(attack, made)
        found.escapes += one.touched()
        found.leftovers = sorted(one.leftovers())
    return found


def all_attacks() -> list[Attack]:
    """Those whose system calls this machine has."""
    known = numbers()
    return [
        attack
        for attack in ATTACKS
        if not attack.name.startswith("calls: ")
        or known.get(attack.name.removeprefix("calls: ")) is not None
    ]


def as_nobody(python: str, **settings: int) -> Found:
    """The same as a user without rights, in a process that gives root's up.

    Raises:
      CalledProcessError: it could not be done.
    """
    given = [python, json.dumps(settings)]
    said = subprocess.run(
        [sys.executable, "-m", "tests.rewards.sandbox.host", *given],
        stdout=subprocess.PIPE,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    return Found(**json.loads(said.stdout))


def main() -> None:
    """Becomes nobody, attacks, prints what came of it."""
    bubblewrap.binary()
    os.setgroups([])
    os.setresgid(*[bubblewrap.NOBODY] * 3)
    os.setresuid(*[bubblewrap.NOBODY] * 3)
    print(json.dumps(asdict(run_all(python=sys.argv[1], **json.loads(sys.argv[2])))))


if __name__ == "__main__":
    main()
