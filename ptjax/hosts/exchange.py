"""What processes tell each other: the first tells all, or each tells all.

The key-value store of `jax.distributed` is used and no device collective: some of these calls are
made in background threads, where a collective could cross one of the train step, and others wait
for work of hosts that takes longer than a collective waits.
"""

import base64
import io
import itertools
import json
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax._src import distributed

from ptjax.errors import UserError

_TIMEOUT_MS = 20 * 60 * 1000
_LOOK_MS = 10_000
"""Between two looks of a wait without end: Ctrl-C is seen, and that a process has died."""
_numbers = itertools.count()
_told: list[str] = []
"""Keys that this process wrote in `from_each` and all may not have read yet."""


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
    key = f"ptjax/{number}"
    if jax.process_index() != 0:
        return _value(client.blocking_key_value_get(key, _TIMEOUT_MS))
    return _tell(client, key, ask)


def own(count: int) -> slice:
    """Which of so many things are this process's: nearly as many as every other's, in order."""
    index, processes = jax.process_index(), jax.process_count()
    return slice(count * index // processes, count * (index + 1) // processes)


def from_each(ask: Callable[[], Any]) -> list[Any]:
    """Runs `ask` on each process; returns the JSON-able results by process, or an error, on all.

    To be called in the main thread, by all, in order. However long one takes, the others wait.

    Raises:
      UserError: what `ask` raised on another process, and processes that were not joined.
    """
    if jax.process_count() == 1:
        return [ask()]
    check_joined()
    client: Any = distributed.global_state.client
    number = ticket()
    keys = [f"ptjax/{number}/{index}" for index in range(jax.process_count())]
    _tell(client, keys[jax.process_index()], ask)
    found = [_value(_wait(client, key)) for key in keys]
    while _told:  # who has written now had read what was written before
        client.key_value_delete(_told.pop())
    _told.append(keys[jax.process_index()])
    return found


def several() -> bool:
    """Whether processes were joined; it is known without a look at the devices."""
    return distributed.global_state.num_processes > 1


def gathered(own: np.ndarray) -> np.ndarray:
    """The arrays of all processes, one behind the other; to be called as `from_each`.

    Args:
      own: this process's; all are alike but for the length of the first axis.
    """
    if not several():
        return own

    def packed() -> str:
        file = io.BytesIO()
        np.save(file, own, allow_pickle=False)
        return base64.b64encode(zlib.compress(file.getvalue(), 1)).decode()

    told = [zlib.decompress(base64.b64decode(text)) for text in from_each(packed)]
    return np.concatenate([np.load(io.BytesIO(text), allow_pickle=False) for text in told])


def _tell(client: Any, key: str, ask: Callable[[], Any]) -> Any:
    """Writes what `ask` returns or raises, and does the same."""
    try:
        value = ask()
        text = json.dumps({"value": value})
    except Exception as error:
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        told = {"error": said, "exit_code": getattr(error, "exit_code", 2)}
        client.key_value_set(key, json.dumps(told))
        raise
    client.key_value_set(key, text)
    return value


def _value(text: str) -> Any:
    """What another process returned; raises what it raised."""
    answer = json.loads(text)
    if "error" in answer:
        raise UserError(answer["error"], exit_code=answer["exit_code"])
    return answer["value"]


def _wait(client: Any, key: str) -> str:
    """What is written under a key, once it is."""
    while True:
        try:
            return client.blocking_key_value_get(key, _LOOK_MS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
