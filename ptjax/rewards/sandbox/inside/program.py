"""The process of a program: takes its limits, leaves its privileges, runs."""

import atexit
import builtins
import fcntl
import io
import os
import resource
import sys

NAME = "/tmp/main.py"


def child(order: dict, ends: list) -> None:
    """Never returns; what the program raises is printed, and the status is 1."""
    status = 1
    try:
        confine(order, ends)
        status = finish(order)
    finally:
        os._exit(status)


def confine(order: dict, ends: list) -> None:
    """Takes the descriptors, the limits and the user that the program is to have."""
    kept = [fcntl.fcntl(end, fcntl.F_DUPFD, 32) for end in ends]
    for place, end in enumerate(kept):
        os.dup2(end, place)
    os.closerange(3 if order["as"] == "run" else len(ends), os.sysconf("SC_OPEN_MAX"))
    os.setsid()
    limits = order["limits"]
    for what, most in (
        (resource.RLIMIT_AS, limits["memory_mb"] * 2**20),
        (resource.RLIMIT_CPU, limits["cpu_seconds"] + 1),
        (resource.RLIMIT_FSIZE, limits["disk_mb"] * 2**20),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        resource.setrlimit(what, (int(most), int(most)))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(*[order["uid"]] * 3)
        os.setresuid(*[order["uid"]] * 3)
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.__stderr__ = io.TextIOWrapper(
        open(2, "wb", 0, closefd=False), "utf-8", "backslashreplace", write_through=True
    )


def load(source: str, name: str) -> dict:
    """Runs a program's text as a module of that name; returns what it defined."""
    module = type(sys)(name)
    module.__dict__.update(__file__=NAME, __builtins__=builtins)
    sys.modules[name], sys.argv[:] = module, [NAME]
    exec(compile(source, NAME, "exec"), module.__dict__)
    return module.__dict__


def finish(order: dict) -> int:
    """Does what the process is for, as an interpreter does: threads, exit functions, buffers."""
    status = 0
    try:
        if order["as"] == "run":
            load(order["source"], "__main__")
        elif order["as"] == "serve":
            sys.modules["calls"].serve(load(order["source"], "solution"))
        else:
            import judge

            judge.judge(order)
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 1
    if threading := sys.modules.get("threading"):
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        status = status or 1
    return status & 255
