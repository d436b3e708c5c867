"""Process 1 of a sandbox: starts programs, holds each to its limits, and leaves none behind.

Orders come on one descriptor and reports leave on another; no program has either. Both are a line
of words, the last of which are lengths of what follows it.
"""

import builtins
import marshal
import os
import select
import sys

import program
from watch import CHUNK, Run

TICK_MS = 20
PIPES = ("in", "out", "err", "ask", "answer")


def start(order: dict, poll: select.poll) -> Run:
    """Starts a program in a process of its own."""
    if order["as"] != "run":
        __import__("calls")  # once, before the processes that need it

    pipes = {name: os.pipe() for name in PIPES}
    theirs = [pipes[name][0 if name in ("in", "ask") else 1] for name in PIPES]
    ours = {name: pipes[name][1 if name in ("in", "ask") else 0] for name in PIPES}
    for end in theirs:
        os.fchmod(end, 0o666)  # `/dev/stdin` opens them anew, as another user
    pid = os.fork()
    if pid == 0:
        program.child(order, theirs)
    for end in theirs:
        os.close(end)
    for end in ours.values():
        os.set_blocking(end, False)
    return Run(pid, order, ours, poll)


def hide() -> None:
    """Keeps this process's memory and descriptors from a program of the same user."""
    import ctypes

    if ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) != 0:  # PR_SET_DUMPABLE
        sys.exit("prctl failed")


def report(end: int, head: str, *rest: bytes) -> None:
    """Sends a report out."""
    lengths = "".join(f" {len(one)}" for one in rest)
    data = f"{head}{lengths}\n".encode() + b"".join(rest)
    while data:
        data = data[os.write(end, data) :]


def main() -> None:
    """Obeys until the orders end."""
    if os.getpid() != 1:
        sys.exit("not process 1: it would kill what is not its own")
    orders, reports = int(sys.argv[1]), int(sys.argv[2])
    sys.path.extend(sys.argv[3:])
    for name in ("exit", "quit"):  # as `site` has them
        setattr(builtins, name, sys.exit)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass
    if os.geteuid() != 0:
        hide()
    report(reports, "ready")
    run: Run | None = None
    waiting = bytearray()
    poll = select.poll()
    poll.register(orders, select.POLLIN)
    while True:
        ready = poll.poll(TICK_MS if run else None)
        if any(end == orders for end, _ in ready):
            data = os.read(orders, CHUNK)
            if not data:
                os._exit(0)
            waiting += data
        while (head := waiting.find(b"\n") + 1) > 0:
            what, length = waiting[:head].split()
            whole = head + int(length)
            if len(waiting) < whole:
                break
            body = bytes(waiting[head:whole])
            del waiting[:whole]
            if what == b"start":
                run = start(marshal.loads(body), poll)
            elif run and what == b"ask":
                run.ask(body)
            elif run:
                run.over = run.over or "stopped"
        if run:
            for line in run.step(ready):
                report(reports, "line", line)
            if run.over:
                over, status, seconds, out, err = run.end()
                report(reports, f"ended {over} {status} {seconds:.4f}", out, err)
                run = None


if __name__ == "__main__":
    main()
