"""What process 0 found out, told to all processes.

The key-value store of `jax.distributed` is used and no device collective: these calls are made in
background threads too, where a collective could cross one of the train step.
"""

import itertools
import json
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed

from ptjax.errors import UserError

_TIMEOUT_MS = 20 * 60 * 1000
_numbers = itertools.count()


def ticket() -> int:
    """Returns a number that is the same on all processes: take it in the main thread, in order."""
    return next(_numbers)


def check_joined() -> None:
    """Checks that processes which share devices can talk to each other.

    On a TPU slice jax sees all chips whether or not it was told of the other hosts.

    Raises:
      UserError: several processes, and `jax.distributed` was not initialised.
    """
    if jax.process_count() > 1 and distributed.global_state.client is None:
        raise UserError(
            f"{jax.process_count()} processes share these devices and were not joined: add "
            "--distributed to the command, or call jax.distributed.initialize() before all else"
        )


def from_primary(number: int, ask: Callable[[], Any]) -> Any:
    """Runs `ask` on process 0 and returns its JSON-able result, or raises its error, on all.

    Raises:
      UserError: what `ask` raised, and processes that were not joined.
    """
    if jax.process_count() == 1:
        return ask()
    check_joined()
    client: Any = distributed.global_state.client
    key = f"ptjax/checkpoint/{number}"
    if jax.process_index() != 0:
        answer = json.loads(client.blocking_key_value_get(key, _TIMEOUT_MS))
        if "error" in answer:
            raise UserError(answer["error"], exit_code=answer["exit_code"])
        return answer["value"]
    try:
        value = ask()
    except Exception as error:
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        told = {"error": text, "exit_code": getattr(error, "exit_code", 2)}
        client.key_value_set(key, json.dumps(told))
        raise
    client.key_value_set(key, json.dumps({"value": value}))
    return value
