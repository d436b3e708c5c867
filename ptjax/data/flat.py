"""The tokens of a source, wherever they are: here, or with the process that made them."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Shaped

from ptjax.data.store import FIELDS, Store

FLAT = ("tokens", "mask", "labels")
"""The fields of a store that have a value a token."""


@runtime_checkable
class Asks(Protocol):
    """Asks other processes: `ptjax.hosts.peers.Peers`, without the import of jax by workers."""

    def ask(self, questions: Mapping[int, bytes]) -> dict[int, bytes]:
        """The answers, by process as the questions."""
        ...


class Flat:
    """The flat fields of a source's stores, those of one process behind the other's.

    Args:
      store: of this process.
      ends: where in the fields each process's part ends; one number where this process has all.
      peers: the other processes; None where there are none.
      own: the number of this one.
    """

    def __init__(self, store: Store, ends: Int[np.ndarray, " P"], peers: Asks | None, own: int):
        self._store, self._ends, self._peers, self._own = store, ends, peers, own

    @property
    def begin(self) -> int:
        """Where this process's part begins."""
        return int(self._ends[self._own - 1]) if self._own else 0

    def read(self, name: str, places: Int[np.ndarray, " k"]) -> Shaped[np.ndarray, " k"]:
        """Tokens, mask or labels at these places, asked for where another process has them.

        Raises:
          ConnectionError: that process is gone.
        """
        if self._peers is None:
            return np.asarray(getattr(self._store, name)[places])
        made = np.empty(len(places), FIELDS[name])
        whose = np.searchsorted(self._ends, places, side="right")
        begins = np.append(0, self._ends)[whose]
        others = np.unique(whose[whose != self._own]).tolist()
        answers = self._peers.ask(
            {one: _question(name, (places - begins)[whose == one]) for one in others}
        )
        for one in others:
            made[whose == one] = np.frombuffer(answers[one], FIELDS[name])
        mine = whose == self._own
        made[mine] = getattr(self._store, name)[(places - begins)[mine]]
        return made


def answer(store: Store, question: bytes) -> bytes:
    """What a store has at the places that another process asks for."""
    words = np.frombuffer(question, np.int64)
    return getattr(store, FLAT[words[0]])[words[1:]].tobytes()


def _question(name: str, places: Int[np.ndarray, " k"]) -> bytes:
    return np.append(FLAT.index(name), places).astype(np.int64).tobytes()
