"""Joins the other processes of a run, by flags or as the cluster made them known."""

import atexit
import contextlib
import logging
import os
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

from ptjax.errors import UserError, in_one_line
from ptjax.hosts.lifeline import Lifeline

_log = logging.getLogger("ptjax")

PATIENCE = 300
"""Seconds that a process waits for the others to come."""
_VERDICT = 3.0
"""Seconds in which a process that dies is known to the others."""


_CLEANING = 20.0
"""Seconds for what is to be done as a process ends."""


class Places(NamedTuple):
    """Who is where, as flags say it; None where they say nothing.

    Attributes:
      coordinator: host:port where process 0 listens.
      processes: how many there are.
      process: the number of this one.
    """

    coordinator: str | None
    processes: int | None
    process: int | None


@contextlib.contextmanager
def joined(places: Places, *, by_cluster: bool) -> Iterator[None]:
    """Within it the processes of a run are one: what ends one before its time ends all.

    Args:
      places: from flags.
      by_cluster: a TPU slice, SLURM, Open MPI or Kubernetes made the processes known.

    Raises:
      UserError: flags that do not go together, no cluster, an address that cannot be used.
    """
    _check(places, by_cluster)
    if not by_cluster and places.processes is None:
        yield
        return
    lifeline = _join(places)
    try:
        yield
    except SystemExit:
        lifeline.leave()
        raise
    except (Exception, KeyboardInterrupt) as error:
        # A collective fails where a process is gone: which one it was says more.
        line = in_one_line(error) or lifeline.verdict(_VERDICT)
        if line is not None:
            _end(lifeline, line, f"error: {line}")
        brief = UserError(f"{type(error).__name__}: {error}", exit_code=1)
        _end(lifeline, brief, "".join(traceback.format_exception(error)).rstrip())
    lifeline.leave()


def _check(places: Places, by_cluster: bool) -> None:
    """Refuses flags that do not go together, and an address that none can be reached at."""
    given = [value for value in places if value is not None]
    if by_cluster and given:
        raise UserError(
            "--distributed finds the processes by itself: leave it out, or --coordinator, "
            "--process and --processes"
        )
    if given and len(given) < len(places):
        raise UserError("--coordinator, --process and --processes go together")
    if places.coordinator is None or places.processes is None or places.process is None:
        return
    host, _, port = places.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator={places.coordinator}: give HOST:PORT, where process 0 runs")
    if not 0 <= places.process < places.processes:
        raise UserError(
            f"--process={places.process}: of --processes={places.processes} the numbers are 0 to "
            f"{places.processes - 1}"
        )
    if places.process == 0:
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:
            raise UserError(
                f"--coordinator={places.coordinator}: process 0 cannot listen at port {port} "
                f"({error.strerror or error}); give another to all processes"
            ) from error


def _join(places: Places) -> Lifeline:
    import jax
    from jax._src import distributed

    state = distributed.global_state
    timer = threading.Timer(PATIENCE, _alone, [state])
    timer.daemon = True
    timer.start()
    try:
        # jax would abort with a page of C++ where our timer says a line: it gets longer.
        jax.distributed.initialize(*places, initialization_timeout=PATIENCE + 30)
    except (ValueError, RuntimeError, OSError) as error:
        if places.processes is not None:
            raise UserError(f"--coordinator={places.coordinator}: {error}") from error
        raise UserError(
            f"--distributed: no TPU slice, SLURM, Open MPI or Kubernetes is found here ({error}); "
            "give --coordinator=HOST:PORT, --processes=N and --process=I"
        ) from error
    finally:
        timer.cancel()
    assert state.coordinator_address is not None
    if state.process_id == 0:
        _log.info("%d processes have come together", state.num_processes)
    return Lifeline(state.client, state.coordinator_address, state.process_id, state.num_processes)


def _alone(state: Any) -> None:
    """Ends this process, which waits for others in vain."""
    print(
        f"error: process {state.process_id} of {state.num_processes} has waited {PATIENCE} s for "
        f"the others to come to {state.coordinator_address}: start the same command for each, and "
        "let them reach this address",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def _end(lifeline: Lifeline, error: UserError, text: str) -> NoReturn:
    """Says what went wrong, here and to the others, and ends this process.

    What was to be done at the end is done, but for jax's part: it would wait for all processes.
    """
    from jax._src import api

    if not lifeline.speaks():
        threading.Event().wait()  # it is being said, and this process ended
    print(text, file=sys.stderr, flush=True)
    lifeline.fail(str(error), error.exit_code)
    atexit.unregister(api.clean_up)
    late = threading.Timer(_CLEANING, os._exit, [error.exit_code])
    late.daemon = True
    late.start()
    atexit._run_exitfuncs()
    lifeline.end(error.exit_code)
