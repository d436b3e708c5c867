"""Meshes, and which logical axis lies on which mesh axis: the only file that knows devices.

Axes of a mesh: `data` (batch, parameters copied), `fsdp` (batch, parameters sharded), `tensor`
(heads, hidden units and vocabulary sharded).
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from ptjax.errors import UserError, check_keys

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")

RULES: Mapping[str, str | tuple[str, ...] | None] = {
    "batch": BATCH,
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "head_dim": None,
    "layers": None,
    "rank": None,
    "labels": None,
    "length": None,
}


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over `data`, `fsdp` and `tensor`; one size may be -1 for "all that is left".

    Where devices are of several slices, `data` goes over them first.

    Raises:
      UserError: an unknown axis, sizes whose product is not the number of devices, or a `data` that
        does not divide over the slices.
    """
    check_keys(sizes, AXES, "mesh")
    devices = jax.devices() if devices is None else list(devices)
    shape = [int(sizes.get(axis, 1)) for axis in AXES]
    asked = "mesh " + " x ".join(f"{axis} {size}" for axis, size in zip(AXES, shape, strict=True))
    if shape.count(-1) > 1 or any(size == 0 or size < -1 for size in shape):
        raise UserError(f"{asked}: sizes are positive, and at most one is -1")
    if -1 in shape:
        rest = math.prod(size for size in shape if size != -1)
        if len(devices) % rest:
            raise UserError(f"{asked}: {rest} does not divide the {len(devices)} devices")
        shape[shape.index(-1)] = len(devices) // rest
    if math.prod(shape) != len(devices):
        raise UserError(f"{asked} needs {math.prod(shape)} devices, but there are {len(devices)}")
    kinds = (AxisType.Auto,) * len(AXES)
    slices = _slices(devices)
    if slices == 1:
        return jax.make_mesh(shape, AXES, devices=devices, axis_types=kinds)
    if shape[0] % slices:
        raise UserError(
            f"{asked}: there are {slices} slices, and parameters are sharded within one: set data "
            f"to a multiple of {slices}"
        )
    within, across = (shape[0] // slices, *shape[1:]), (slices, 1, 1)
    return Mesh(mesh_utils.create_hybrid_device_mesh(within, across, devices), AXES, kinds)


def _slices(devices: Sequence[Any]) -> int:
    """TPU slices that devices are of: what lies between them is slower than what lies within."""
    if devices[0].platform != "tpu":
        return 1
    return len({getattr(device, "slice_index", None) for device in devices})


def batch_shards(mesh: Mesh) -> int:
    """How many shards the batch axis has."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def partition(axes: Sequence[str], shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """Where the rules put an array with these logical axes.

    An axis whose size its mesh axes do not divide is replicated, with a log line. An axis that is
    named by a number has no meaning to the rules and is replicated.

    Raises:
      ValueError: a logical axis without a rule, or two that ask for the same mesh axis.
    """
    rules = {axis: None if axis[0].isdigit() else RULES.get(axis, axis) for axis in axes}
    if unknown := [axis for axis, rule in rules.items() if rule == axis]:
        raise ValueError(f"no sharding rule for axis {unknown[0]!r} of {tuple(axes)}")
    spec: list[str | tuple[str, ...] | None] = []
    used: set[str] = set()
    for axis, size in zip(axes, shape, strict=True):
        rule = rules[axis]
        names = (rule,) if isinstance(rule, str) else rule or ()
        if used & set(names):
            raise ValueError(f"axes {tuple(axes)} use mesh axis {min(used & set(names))!r} twice")
        used |= set(names)
        parts = math.prod(mesh.shape[name] for name in names)
        if size % parts:
            logging.getLogger(__name__).info(
                "axis %s of size %d is not divided by %s = %d: replicated", axis, size, names, parts
            )
            names = ()
        spec.append(names[0] if len(names) == 1 else (names or None))
    return PartitionSpec(*spec)


def named(axes: Sequence[str], shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """The sharding of an array with these logical axes."""
    return NamedSharding(mesh, partition(axes, shape, mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: Array, *axes: str | None) -> Array:
    """Pins an activation to the rules of the mesh in force (`jax.set_mesh`); a no-op without one.

    Args:
      x: an array inside jit.
      *axes: a logical axis for each dimension, None for one that is not sharded.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    spec = []
    for axis, size in zip(axes, x.shape, strict=True):
        rule = RULES[axis] if axis else None
        names = (rule,) if isinstance(rule, str) else rule or ()
        divides = size % math.prod(mesh.shape[name] for name in names) == 0
        spec.append(tuple(names) if names and divides else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def local(
    function: Callable[..., Any],
    *args: Array,
    inputs: Sequence[Sequence[str | None]],
    output: Sequence[str | None],
) -> Array:
    """`function(*args)`, each device on its own part of the arrays: nothing moves between devices.

    Where a mesh axis does not divide every array that the rules lay on it, no array is cut along it
    and its devices do the same work.

    Args:
      function: of arrays; what it does must not mix entries of the axes that are sharded.
      *args: its arguments.
      inputs: the logical axes of each argument, None for one that is not sharded.
      output: those of its result.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(*args)

    def parts(axis: str) -> int:
        rule = RULES[axis] or ()
        return math.prod(mesh.shape[name] for name in ((rule,) if isinstance(rule, str) else rule))

    sizes = [
        pair
        for axes, x in zip(inputs, args, strict=True)
        for pair in zip(axes, x.shape, strict=True)
    ]
    whole = {RULES[axis] for axis, size in sizes if axis and size % parts(axis)}

    def spec(axes: Sequence[str | None]) -> PartitionSpec:
        rules = [RULES[axis] if axis else None for axis in axes]
        return PartitionSpec(*(None if rule in whole else rule for rule in rules))

    specs: Any = tuple(map(spec, inputs))
    mapped = jax.shard_map(function, in_specs=specs, out_specs=spec(output), check_vma=False)
    return mapped(*args)


def platform() -> str:
    """Of the devices that a program is compiled for: those of the mesh in force, there or not."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def active_batch_shards() -> int:
    """Batch shards of the mesh in force, 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in BATCH)


def put_rows(rows: np.ndarray, mesh: Mesh, *, whole: bool = False) -> Array:
    """An array of all processes, its first axis over the batch axes.

    Args:
      rows: those that this process has.
      mesh: of all processes.
      whole: whether they are all there are, alike in every process.
    """
    sharding = NamedSharding(mesh, PartitionSpec(BATCH))
    shape = rows.shape if whole else None
    return jax.make_array_from_process_local_data(sharding, rows, shape)


def put_batch(
    columns: Mapping[str, np.ndarray], mesh: Mesh, *, whole: bool = False
) -> dict[str, Array]:
    """`put_rows` of each column."""
    return {name: put_rows(column, mesh, whole=whole) for name, column in columns.items()}


def fetch(tree: Any) -> Any:
    """Arrays as numpy, whole, in every process; all processes ask for them.

    Args:
      tree: of arrays of the mesh, or of numpy arrays, of which each process has its own rows.
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def alone() -> AbstractContextManager[Any]:
    """Within it no array lies over a mesh: what this process computes concerns no other."""
    return jax.set_mesh(make_mesh({}, jax.local_devices()[:1]))
