"""The process of a program: takes its limits, leaves its privileges, runs, or is called."""

import atexit
import builtins
import fcntl
import io
import json
import linecache
import os
import resource
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any, NoReturn

import wire

NAME = "/tmp/main.py"
ASK, ANSWER = 3, 4


def child(order: dict[str, Any], ends: list[int]) -> NoReturn:
    """Never returns; what the program raises is printed, and the status is 1."""
    status = 1
    try:
        confine(order, ends)
        status = finish(lambda: work(order))
    finally:
        os._exit(status)


def work(order: dict[str, Any]) -> None:
    """Does what the process is for."""
    if order["as"] == "judge":
        import judge

        judge.judge(order)
    else:
        {"run": run, "serve": serve}[order["as"]](order)


def confine(order: dict[str, Any], ends: list[int]) -> None:
    """Takes the descriptors, the limits and the user that the program is to have."""
    high = [fcntl.fcntl(end, fcntl.F_DUPFD, 32) for end in ends]
    for place, end in enumerate(high):
        os.dup2(end, place)
    os.closerange(len(ends) if order["as"] != "run" else 3, os.sysconf("SC_OPEN_MAX"))
    os.setsid()
    limits = order["limits"]
    memory, disk = int(limits["memory_mb"] * 2**20), int(limits["disk_mb"] * 2**20)
    seconds = int(limits["cpu_seconds"]) + 1
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, disk),
        (resource.RLIMIT_NOFILE, int(limits["open_files"])),
        (resource.RLIMIT_NPROC, int(limits["processes"])),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        resource.setrlimit(what, (most, most))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(*[order["uid"]] * 3)
        os.setresuid(*[order["uid"]] * 3)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.__stderr__ = io.TextIOWrapper(
        open(2, "wb", 0, closefd=False), "utf-8", "backslashreplace", write_through=True
    )


def load(source: str, name: str) -> dict[str, Any]:
    """Runs a program's text as a module of that name; returns what it defined."""
    module = types.ModuleType(name)
    module.__dict__.update(__file__=NAME, __builtins__=builtins)
    sys.modules[name], sys.argv[:] = module, [NAME]
    linecache.cache[NAME] = (len(source), None, source.splitlines(True), NAME)
    exec(compile(source, NAME, "exec"), module.__dict__)
    return module.__dict__


def finish(work: Callable[[], None]) -> int:
    """Does the work as an interpreter does, to its end: threads, exit functions, buffers."""
    status = 0
    try:
        work()
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        status = status or 1
    return status & 255


def run(order: dict[str, Any]) -> None:
    """A program that reads standard input and prints."""
    load(order["source"], "__main__")


def serve(order: dict[str, Any]) -> None:
    """A program whose functions are called, with plain data, until the questions end."""
    asked, answers = open(ASK, encoding="utf-8"), open(ANSWER, "w", encoding="utf-8")
    objects: list[Any] = []

    def keep(value: Any) -> int:
        objects.append(value)
        return len(objects) - 1

    names = load(order["source"], "solution")
    for line in asked:
        question = json.loads(line)
        try:
            made = answer(names, objects, question)
            said = json.dumps({"value": wire.pack(made, keep)})
        except Exception as error:
            text = traceback.format_exception_only(error)[-1].strip()[:200]
            said = json.dumps({"raised": type(error).__name__, "text": text})
        answers.write(said + "\n")
        answers.flush()


def answer(names: dict[str, Any], objects: list[Any], question: dict[str, Any]) -> Any:
    """What a function or an attribute says.

    A question's `of` is a path such as `add`, `Solution().add` or `math.pi`, or the number of an
    object that was kept; `attribute` is one of its attributes; `args` calls it.
    """
    of = question["of"]
    found = objects[of] if isinstance(of, int) else at(names, of)
    if "attribute" in question:
        found = getattr(found, question["attribute"])
    if "args" not in question:
        return found
    args = wire.unpack(question["args"], objects.__getitem__)
    return found(*args, **wire.unpack(question["kwargs"], objects.__getitem__))


def at(names: dict[str, Any], path: str) -> Any:
    """What a path leads to; a bare name that is not there is looked for as `Solution`'s method."""
    first, *rest = path.split(".")
    if first.removesuffix("()") not in names and not rest and "Solution" in names:
        first, rest = "Solution()", [path]
    bare = first.removesuffix("()")
    if bare not in names:
        raise NameError(f"name {bare!r} is not defined")
    found = names[bare]() if first.endswith("()") else names[first]
    for part in rest:
        found = getattr(found, part.removesuffix("()"))
        found = found() if part.endswith("()") else found
    return found
