"""The other end of `ptjax.rewards.worker`: a process that runs one function, call by call."""

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

    What the function prints goes nowhere. The kernel ends a process that outlives its call by more
    than a second, also where the parent was killed.
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
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        reply(error=f"{type(error).__name__}: {error}")
        return
    for limit, value in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(limit, (value, value))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
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
