"""A program, compiled: what the compiler says of a device's memory, and what it sends."""

import math
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from ptjax.errors import UserError
from ptjax.plan.activations import Kept, kept
from ptjax.plan.buffers import Buffer, largest
from ptjax.plan.collectives import Traffic, traffic
from ptjax.plan.hlo import parse
from ptjax.plan.programs import Planned
from ptjax.sharding import is_on_host

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_REFUSED = re.compile(
    r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm|HLO temporaries \(([\d.]+)([KMGT]?)\)"
)
_LISTED = re.compile(
    r"Size: ([\d.]+)([KMGT]?)\s+(?:Operator: op_name=\"([^\"]*)\"[^\n]*\s+)?Shape: (\w+\[[\d,]*\])"
)
_SHOWN = 8


class Memory(NamedTuple):
    """Bytes of a device while a program runs, by the compiler.

    Attributes:
      arguments: what it is given.
      results: what it gives, those included that take an argument's place.
      donated: of the arguments, what results take over.
      temporaries: what it needs beside both.
      peak: all of these, what is donated once, or what the compiler says where that is more.
      host: beside them, in the host's memory: arguments and temporaries.
    """

    arguments: int
    results: int
    donated: int
    temporaries: int
    peak: int
    host: int


class Compiled(NamedTuple):
    """What is known of a program.

    Attributes:
      planned: the program.
      memory: None where the compiler refused it, for it needs too much.
      peak: bytes at its peak; where it was refused, `needed` of the compiler's message.
      wanted: bytes of what is to be donated.
      cache: bytes of keys and values.
      activations: of the temporaries, what is kept of layers for their backward pass; None where
        it was refused.
      stays: bytes of results that are not written.
      beside: bytes that lie on a device while it runs, and are no part of it.
      traffic: collectives.
      buffers: the largest.
      seconds: that compiling took.
    """

    planned: Planned
    memory: Memory | None
    peak: int
    wanted: int
    cache: int
    activations: Kept | None
    stays: int
    beside: int
    traffic: list[Traffic]
    buffers: list[Buffer]
    seconds: float

    @property
    def total(self) -> int:
        """Bytes of a device at this program's peak, all that lies beside it included."""
        return self.peak + self.beside


def compile_all(
    planned: Sequence[Planned], mesh: Mesh, resident: Any, slices: Sequence[int]
) -> list[Compiled]:
    """Compiles programs one after the other.

    Args:
      planned: the programs.
      mesh: of their shapes.
      resident: what lies on the devices as long as the run lasts.
      slices: of each device, in the order of the mesh.
    """
    return [compile_one(one, mesh, resident, slices) for one in planned]


def compile_one(one: Planned, mesh: Mesh, resident: Any, slices: Sequence[int]) -> Compiled:
    """Compiles one program; see `compile_all`."""
    given = {id(leaf) for leaf in jax.tree.leaves((one.args, one.kwargs))}
    beside = [x for x in jax.tree.leaves((resident, one.beside)) if id(x) not in given]
    sizes = {
        "wanted": held(one.donated),
        "cache": held(one.cache),
        "stays": held(one.stays),
        "beside": held(beside),
    }
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = one.jitted.lower(*one.args, **one.kwargs)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            peak = needed(str(error))
            if peak is None:
                raise UserError(f"{one.name}: the compiler fails: {error}") from error
            seconds = time.perf_counter() - began
            listed = _listed(str(error)) or _arguments(one)
            return Compiled(
                *(one, None, peak),
                **sizes,
                activations=None,
                traffic=[],
                buffers=listed,
                seconds=seconds,
            )
    found = compiled.memory_analysis()
    memory = Memory(
        found.argument_size_in_bytes,
        found.output_size_in_bytes,
        found.alias_size_in_bytes,
        found.temp_size_in_bytes,
        0,
        found.host_argument_size_in_bytes + found.host_temp_size_in_bytes,
    )
    held_together = memory.arguments + memory.temporaries + memory.results - memory.donated
    # The compiler's own peak has what lies in the host's memory in it.
    own = found.peak_memory_in_bytes - memory.host
    memory = memory._replace(peak=max(held_together, own))
    program = parse(compiled.as_text())
    return Compiled(
        one,
        memory,
        memory.peak,
        **sizes,
        activations=kept(program, one.layers),
        traffic=traffic(program, slices, one.chunks),
        buffers=largest(program, _SHOWN),
        seconds=time.perf_counter() - began,
    )


def needed(message: str) -> int | None:
    """Bytes that a program needs, by the message that refuses it; None where that is not why.

    Arguments, results and temporaries together: so does the message of "HLO temporaries" count, for
    all its name. Of 20 GiB of arguments and their sum it says 20 (libtpu 0.0.42.1).
    """
    found = _REFUSED.search(message)
    return None if found is None else _bytes(found[1] or found[3], found[2] or found[4] or "")


def held(tree: Any) -> int:
    """Bytes of a device's parts of all shapes of a tree, padding of layouts left out.

    What lies in the host's memory is no part of it.
    """
    return sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(tree)
        if not is_on_host(leaf)
    )


def _listed(message: str) -> list[Buffer]:
    """The largest allocations that the compiler lists when it gives up."""
    found = [
        Buffer(op or "unnamed", shape, _bytes(size, unit), False, 1)
        for size, unit, op, shape in _LISTED.findall(message)
    ]
    return found[:_SHOWN]


def _arguments(one: Planned) -> list[Buffer]:
    """The largest arguments by their shapes, where the compiler lists nothing."""
    found = [
        Buffer(jax.tree_util.keystr(path), f"{leaf.dtype}{list(part)}", held(leaf), True, 1)
        for path, leaf in jax.tree_util.tree_flatten_with_path(one.args)[0]
        if hasattr(leaf, "sharding") and (part := leaf.sharding.shard_shape(leaf.shape))
    ]
    return sorted(found, key=lambda buffer: -buffer.size)[:_SHOWN]


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * _UNITS[unit])
