"""The other end of `ptjax.rewards.worker`: a process that runs one function, call by call."""

import contextlib
import importlib
import json
import math
import os
import resource
import signal
import sys
from typing import Any

from ptjax.rewards.base import Failed

MEMORY = 4 << 30
"""Bytes of address space."""


def main() -> None:
    """Reads calls and answers them until there are no more.

    A function `start` beside the one that is called runs first. What is printed goes nowhere. The
    kernel ends a process that outlives its call by more than a second, also where the parent was
    killed.
    """
    name, seconds = sys.argv[1], float(sys.argv[2])
    replies = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)

    def reply(**said: Any) -> None:
        replies.write(json.dumps(said) + "\n")
        replies.flush()

    try:
        module, _, attribute = name.rpartition(".")
        found = importlib.import_module(module)
        function = getattr(found, attribute)
        getattr(found, "start", int)()
    except Exception as error:
        reply(error=f"{type(error).__name__}: {error}")
        return
    limits = {resource.RLIMIT_AS: MEMORY, resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    for limit, value in limits.items():
        with contextlib.suppress(ValueError):  # macOS has no limit of address space
            resource.setrlimit(limit, (value, value))
    reply(value=None)
    for line in sys.stdin:
        arguments = json.loads(line)
        signal.alarm(math.ceil(seconds) + 1)
        try:
            said = {"value": function(*arguments)}
        except MemoryError:
            return
        except Failed as error:
            said = {"error": str(error)}
        except Exception as error:
            said = {"error": f"{type(error).__name__}: {error}"[:500]}
        signal.alarm(0)
        reply(**said)


if __name__ == "__main__":
    main()
