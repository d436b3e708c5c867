"""The proof, once a process, that a sandbox holds; without it nothing is graded."""

import functools
import json
import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

from ptjax.errors import UserError
from ptjax.rewards.sandbox.bubblewrap import ENVIRONMENT, INSIDE
from ptjax.rewards.sandbox.limits import Limits
from ptjax.rewards.sandbox.session import SandboxError, Session

NAMESPACES = ("pid", "net", "ipc", "uts", "mnt")
_MEND = (
    "run as root or where unprivileged user namespaces are allowed (sysctl "
    "kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0; in a "
    "container, with its system call filter off and /proc unmasked), on Linux 5.14 or newer"
)
_lock = threading.Lock()


def prove(python: str = "") -> None:
    """Proves that programs are shut in here, or refuses.

    Args:
      python: path of the Python that programs run on; empty: ptjax's own.

    Raises:
      UserError: bubblewrap is missing, a sandbox does not start, or one of them leaks.
    """
    with _lock:
        holes = _holes(python, os.geteuid())
    if holes:
        raise UserError(f"code sandbox: refuses to run programs: {', '.join(holes)}; {_MEND}")


@functools.cache
def _holes(python: str, user: int) -> tuple[str, ...]:
    """What a sandbox lets through; it is looked at once for each user."""
    try:
        with ThreadPoolExecutor(2) as pool:
            looks = [pool.submit(look, python) for look in (_walls, _bounds)]
            return tuple(hole for look in looks for hole in look.result())
    except SandboxError as error:
        return (str(error),)


def _walls(python: str) -> list[str]:
    """Holes in what a program sees and reaches."""
    limits = Limits(memory_mb=256, processes=8, disk_mb=1)
    with tempfile.NamedTemporaryFile("w", suffix=".secret") as secret:
        os.chmod(secret.name, 0o644)
        asked = json.dumps([secret.name, 2 * 256 * 2**20, 2**20])
        with Session(limits, python) as session:
            ended = session.run((INSIDE / "probe.py").read_text(), asked)
    try:
        found = json.loads(ended.out)
    except ValueError:
        return [f"the probe ended by {ended.over}: {(ended.err or ended.out).strip()[-150:]}"]
    alike = [
        n for n in NAMESPACES if found["namespaces"].get(n) == os.readlink(f"/proc/self/ns/{n}")
    ]
    status, environment = found["status"], {*found["environment"]} - {*ENVIRONMENT, "PWD"}
    checks = {
        f"the {', '.join(alike)} namespace is shared": alike,
        "processes outside are seen": found["processes"] > 3,
        "capabilities are left": int(status["CapEff"] or "1", 16),
        "privileges can be gained": status["NoNewPrivs"] != "1",
        "system calls are not filtered": status["Seccomp"] != "2",
        "programs run as root": found["user"] == 0,
        f"the environment has {sorted(environment)}": environment,
        f"descriptors {found['descriptors']} are inherited": found["descriptors"],
        f"{found['written']} can be written": found["written"],
        f"{found['seen']} can be seen": found["seen"],
        "sockets can be made": found["sockets"],
        "networks can be reached": found["routes"],
        "the limit of memory does not hold": found["memory"],
        "the limit of file size does not hold": found["disk"],
        "the limit of processes does not hold": not 0 < found["forks"] <= limits.processes,
        "process 1 can be read": found["initial"],
    }
    return [hole for hole, open_ in checks.items() if open_]


def _bounds(python: str) -> list[str]:
    """Limits of time and output that do not hold."""
    limits = Limits(cpu_seconds=0.2, wall_seconds=0.5, output_kb=64)
    programs = {
        "time": ("import time; time.sleep(60)", ("time",)),
        "processor time": ("while True: pass", ("cpu", "time")),
        "output": ("import os\nwhile True: os.write(1, bytes(65536))", ("output",)),
    }
    with Session(limits, python) as session:
        return [
            f"the limit of {name} does not hold ({over})"
            for name, (source, wanted) in programs.items()
            if (over := session.run(source, "").over) not in wanted
        ]
