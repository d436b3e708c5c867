"""Process 1 of a sandbox: starts programs, holds each to its limits, and leaves none behind.

Orders come as lines of JSON on one descriptor, reports leave on another; no program has either.
"""

import builtins
import contextlib
import json
import os
import selectors
import signal
import sys
from typing import Any

import program
from watch import CHUNK, Run

TICK = 0.02


def start(order: dict[str, Any]) -> Run:
    """Starts a program in a process of its own."""
    pipes = {name: os.pipe() for name in ("in", "out", "err", "ask", "answer")}
    theirs = {n: pair[0 if n in ("in", "ask") else 1] for n, pair in pipes.items()}
    ours = {n: pair[1 if n in ("in", "ask") else 0] for n, pair in pipes.items()}
    for end in theirs.values():
        os.fchmod(end, 0o666)  # `/dev/stdin` opens them anew, as another user
    pid = os.fork()
    if pid == 0:
        program.child(order, [theirs[name] for name in ("in", "out", "err", "ask", "answer")])
    for end in theirs.values():
        os.close(end)
    for end in ours.values():
        os.set_blocking(end, False)
    return Run(pid, order, ours)


def hide() -> None:
    """Keeps this process's memory and descriptors from a program of the same user."""
    import ctypes

    if ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) != 0:  # PR_SET_DUMPABLE
        sys.exit("prctl failed")


def main() -> None:
    """Obeys until the orders end."""
    orders, reports = int(sys.argv[1]), int(sys.argv[2])
    sys.path.extend(sys.argv[3:])
    for name in ("exit", "quit"):  # as `site` has them
        setattr(builtins, name, sys.exit)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    if os.geteuid() != 0:
        hide()

    def report(**said: Any) -> None:
        data = json.dumps(said).encode() + b"\n"
        while data:
            data = data[os.write(reports, data) :]

    report(ready=True)
    run: Run | None = None
    waiting = bytearray()
    select = selectors.DefaultSelector()
    select.register(orders, selectors.EVENT_READ)
    while True:
        select.select(TICK if run else None)
        if any(key.fd == orders for key, _ in select.select(0)):
            data = os.read(orders, CHUNK)
            if not data:
                os._exit(0)
            waiting += data
            *lines, rest = waiting.split(b"\n")
            waiting = bytearray(rest)
            for line in lines:
                order = json.loads(line)
                if order["do"] == "start":
                    run = start(order)
                    select.register(run.selector, selectors.EVENT_READ)
                elif run and order["do"] == "ask":
                    run.ask(json.dumps(order["line"]).encode() + b"\n")
                elif run:
                    run.over = "stopped"
        if run:
            for line in run.step():
                run.due -= 1
                if run.due < 0 and not run.asks:
                    run.over = "forged"
                    break
                report(line=line.decode("utf-8", "replace"))
            if run.over:
                select.unregister(run.selector)
                report(**run.end())
                run = None


if __name__ == "__main__":
    main()
