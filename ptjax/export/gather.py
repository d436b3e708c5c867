"""Tensors from wherever they are sharded to the process that writes, one at a time."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from ptjax.hosts import exchange
from ptjax.models.weights import Lazy

Named = tuple[str, Lazy]


def to_host(leaf: Array) -> np.ndarray:
    """A whole array on the host; in a run of several processes all of them call it together."""
    if leaf.is_fully_addressable:
        return np.asarray(leaf)
    assert isinstance(leaf.sharding, NamedSharding)
    everywhere = NamedSharding(leaf.sharding.mesh, PartitionSpec())
    return np.asarray(jax.jit(lambda x: x, out_shardings=everywhere)(leaf).addressable_data(0))


def write_once(tensors: Sequence[Named], write: Callable[[Sequence[Named]], None]) -> None:
    """Calls `write` on process 0, which may fetch the tensors in any order, each when it likes.

    The other processes take part in every fetch as process 0 announces it, and raise what it
    raises.

    Args:
      tensors: the same on all processes.
      write: gets the tensors.
    """
    if jax.process_count() == 1:
        write(tensors)
    elif jax.process_index() == 0:
        _lead(tensors, write)
    else:
        by_name = dict(tensors)
        while (name := exchange.from_primary(exchange.ticket(), lambda: None)) is not None:
            by_name[name].get()


def _lead(tensors: Sequence[Named], write: Callable[[Sequence[Named]], None]) -> None:
    def announced(name: str, tensor: Lazy) -> Lazy:
        def get() -> np.ndarray:
            exchange.from_primary(exchange.ticket(), lambda: name)
            return tensor.get()

        return tensor._replace(get=get)

    failure: list[Exception] = []
    try:
        write([(name, announced(name, tensor)) for name, tensor in tensors])
    except Exception as error:  # told to the others first, who wait for the next name
        failure.append(error)

    def outcome() -> None:
        if failure:
            raise failure[0]

    exchange.from_primary(exchange.ticket(), outcome)
