"""Meshes, and which logical axis lies on which mesh axis: the only file that knows devices.

Axes of a mesh: `data` (batch, parameters copied), `fsdp` (batch, parameters sharded), `expert`
(batch, experts sharded, other parameters as over `fsdp`), `sequence` (rows cut along their length,
parameters as over `fsdp`), `tensor` (heads, hidden units and vocabulary sharded). `expert` and
`sequence` are there where they are asked for.
"""

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from ptjax.errors import UserError, check_keys

AXES = ("data", "fsdp", "expert", "sequence", "tensor")
BATCH = ("data", "fsdp", "expert")
_IF_ASKED = ("expert", "sequence")
HOST = "pinned_host"
"""The memory of the machine that a device hangs on; on CPUs it is the device's own."""

RULES: Mapping[str, str | tuple[str, ...] | None] = {
    "batch": BATCH,
    "length": "sequence",
    "rows": (*BATCH, "sequence"),
    "copies": "data",
    "vocab": "tensor",
    "embed": ("fsdp", "expert", "sequence"),
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "experts": "expert",
    "expert_embed": ("fsdp", "sequence"),
    "routes": None,
    "head_dim": None,
    "layers": None,
    "rank": None,
    "labels": None,
    "slots": None,
}
TOKENS = ("batch", "length")
"""The logical axes of rows and their tokens."""
STEPS = ("rows", None)
"""Those of rows that are written token by token: there is no length to cut."""
HIDDEN = (*TOKENS, None)
"""Of hidden states: each device has its own tokens', and gathers the kernels that they meet."""
STATIONARY = ("copies", None, "embed")
"""Of those of rows that are written: cut as kernels are. A token of each row is less than a kernel:
sums of their products move, and of kernels those of experts alone."""


def make_mesh(sizes: Mapping[str, Any], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over `AXES`; one size may be -1 for "all that is left".

    It has no axes `expert` and `sequence` where those are 1. Where devices are of several slices,
    `data` goes over them first. On TPUs an axis takes whole axes of the torus where it can, else
    some of one: of 4x4x4 chips `tensor` 2 takes half of an axis, and `fsdp` the other half too.

    Raises:
      UserError: an unknown axis, sizes whose product is not the number of devices, or a `data` that
        does not divide over the slices.
    """
    check_keys(sizes, AXES, "config.mesh")
    for axis, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool):
            raise UserError(f"config.mesh.{axis} = {size!r}: a whole number is meant")
    devices = jax.devices() if devices is None else list(devices)
    left_out = {axis for axis in _IF_ASKED if sizes.get(axis, 1) == 1}
    axes = tuple(axis for axis in AXES if axis not in left_out)
    shape = [sizes.get(axis, 1) for axis in axes]
    asked = "config.mesh " + " x ".join(
        f"{axis} {size}" for axis, size in zip(axes, shape, strict=True)
    )
    if shape.count(-1) > 1 or any(size == 0 or size < -1 for size in shape):
        raise UserError(f"{asked}: sizes are positive, and at most one is -1")
    if -1 in shape:
        rest = math.prod(size for size in shape if size != -1)
        if len(devices) % rest:
            raise UserError(f"{asked}: {rest} does not divide the {len(devices)} devices")
        shape[shape.index(-1)] = len(devices) // rest
    if math.prod(shape) != len(devices):
        raise UserError(f"{asked} needs {math.prod(shape)} devices, but there are {len(devices)}")
    kinds = (AxisType.Auto,) * len(axes)
    slices = _slices(devices)
    laid = {"allow_split_physical_axes": True}
    if slices == 1:
        return Mesh(mesh_utils.create_device_mesh(shape, devices, **laid), axes, kinds)
    if shape[0] % slices:
        raise UserError(
            f"{asked}: there are {slices} slices, and parameters are sharded within one: set data "
            f"to a multiple of {slices}"
        )
    within, across = (shape[0] // slices, *shape[1:]), (slices, *(1 for _ in shape[1:]))
    made = mesh_utils.create_hybrid_device_mesh(within, across, devices, **laid)
    return Mesh(made, axes, kinds)


def one_device() -> Mesh:
    """The mesh of this process's first device."""
    return make_mesh({}, jax.local_devices()[:1])


def _slices(devices: Sequence[Any]) -> int:
    """TPU slices that devices are of: what lies between them is slower than what lies within."""
    if devices[0].platform != "tpu":
        return 1
    return len({getattr(device, "slice_index", None) for device in devices})


def _lies_on(axis: str | None, mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """The axes of a mesh that the rules lay a logical axis on."""
    rule = RULES[axis] if axis else None
    names = (rule,) if isinstance(rule, str) else rule or ()
    return tuple(name for name in names if name in mesh.shape)


def _parts(axis: str | None, mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts the rules cut a logical axis."""
    return math.prod(mesh.shape[name] for name in _lies_on(axis, mesh))


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes of a mesh that the batch lies on."""
    return _lies_on("batch", mesh)


def batch_shards(mesh: Mesh) -> int:
    """How many shards the batch axis has."""
    return _parts("batch", mesh)


def row_shards(mesh: Mesh) -> int:
    """How many shards rows have that are written, a token at a time."""
    return _parts("rows", mesh)


@functools.cache
def process_shards(mesh: Mesh, process: int) -> tuple[int, ...]:
    """The batch's shards, in order, of which a process's devices hold rows.

    Several processes hold one together where an axis that the batch does not lie on goes over them.
    jax lays axes on a TPU's wires: of 4x8x8 v5p chips `tensor` 4 takes the first, so a host of
    2x2x1 chips has two shards, half of `tensor` each, and its neighbour the other halves.
    """
    by_shard = mesh.devices.reshape(batch_shards(mesh), -1)  # the batch's axes come first
    return tuple(
        shard
        for shard, devices in enumerate(by_shard)
        if any(device.process_index == process for device in devices)
    )


def partition(axes: Sequence[str], shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """Where the rules put an array with these logical axes.

    An axis whose size its mesh axes do not divide is replicated, with a log line. An axis that is
    named by a number has no meaning to the rules and is replicated.

    Raises:
      ValueError: a logical axis without a rule, or two that ask for the same mesh axis.
    """
    known = {axis for axis in axes if axis[0].isdigit() or axis in RULES}
    if unknown := [axis for axis in axes if axis not in known]:
        raise ValueError(f"no sharding rule for axis {unknown[0]!r} of {tuple(axes)}")
    spec: list[str | tuple[str, ...] | None] = []
    used: set[str] = set()
    for axis, size in zip(axes, shape, strict=True):
        names = () if axis[0].isdigit() else _lies_on(axis, mesh)
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


def is_on_host(leaf: Any) -> bool:
    """Whether an array, or a shape with a sharding, lies in the host's memory."""
    return leaf.sharding.memory_kind == HOST


def on_host(at: Any, offload: bool) -> Any:
    """A sharding, where asked for with the memory of the host that each device hangs on."""
    return at.with_memory_kind(HOST) if offload else at


def brought(tree: Any) -> Any:
    """What lies in the host's memory, on the devices; all else as it is. In and outside of jit."""

    def near(leaf: Any) -> Any:
        if jax.typeof(leaf).memory_space is not jax.memory.Space.Host:
            return leaf
        return jax.device_put(leaf, jax.memory.Space.Device)

    return jax.tree.map(near, tree)


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
        names = _lies_on(axis, mesh)
        spec.append(names if names and size % _parts(axis, mesh) == 0 else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def local(
    function: Callable[..., Any],
    *args: Array,
    inputs: Sequence[Sequence[str | None]],
    output: tuple[str | None, ...] | list[tuple[str | None, ...]],
) -> Any:
    """`function(*args)`, each device on its own part of the arrays.

    Nothing moves between devices but what the function gathers. Where a mesh axis does not divide
    every array that the rules lay on it, no array is cut along it and its devices do the same work.

    Args:
      function: of arrays; what it does must not mix entries of the axes that are sharded, unless it
        has gathered them.
      *args: its arguments.
      inputs: the logical axes of each argument, None for one that is not sharded.
      output: those of its result, or of all of its results; a list where these differ.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(*args)

    sizes = [
        pair
        for axes, x in zip(inputs, args, strict=True)
        for pair in zip(axes, x.shape, strict=True)
    ]
    whole = {_lies_on(axis, mesh) for axis, size in sizes if size % _parts(axis, mesh)}

    def spec(axes: Sequence[str | None]) -> PartitionSpec:
        names = [_lies_on(axis, mesh) for axis in axes]
        return PartitionSpec(*(None if name in whole else name or None for name in names))

    specs: Any = tuple(map(spec, inputs))
    made = tuple(map(spec, output)) if isinstance(output, list) else spec(output)
    mapped = jax.shard_map(function, in_specs=specs, out_specs=made, check_vma=False)
    return mapped(*args)


def gathered(x: Array, axis: int, name: str, size: int) -> Array:
    """All of an axis that `local` cut, on each of its devices; its cotangent is reduce-scattered.

    Args:
      x: a device's part, or the whole.
      axis: which of its axes.
      name: the logical axis.
      size: of the whole.
    """
    if x.shape[axis] == size:
        return x
    over = _lies_on(name, jax.sharding.get_abstract_mesh())
    return jax.lax.all_gather(x, over, axis=axis, tiled=True)


def by_expert(
    function: Callable[..., Array],
    tokens: Sequence[Array],
    kernels: Sequence[Array],
    axes: Sequence[Sequence[str | None]],
    at: tuple[str, str | None],
) -> Array:
    """Σ over experts of `function(first, tokens, kernels)`, each device with its own experts.

    Over the mesh axis `expert` devices have different rows and different experts. Each is given the
    rows of all of them (an all-gather), and of all sums gets those of its own rows (a
    reduce-scatter). For E devices of T tokens each receives 2 (E-1) · T hidden states a layer; an
    all-to-all that drops no token, with k experts each, would 2 k (E-1)/E · T if they were loaded
    alike, and need room for as many as are gathered here if they were not.

    Args:
      function: of the number of the device's first expert, its tokens and its kernels; gives what
        these experts add to each token, an array like the first of the tokens.
      tokens: [rows, length, ...] each.
      kernels: [experts, ...] each.
      axes: the logical axes of each kernel, None for one that is not sharded; `mlp` is summed over.
      at: those of rows and length: `TOKENS` or `STEPS`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(0, tokens, kernels)
    whole = {
        axis
        for names, x in zip(axes, kernels, strict=True)
        for axis, size in zip(names, x.shape, strict=True)
        if size % _parts(axis, mesh)
    }
    rows, length = (
        _lies_on(axis, mesh) if size % _parts(axis, mesh) == 0 else ()
        for axis, size in zip(at, tokens[0].shape, strict=False)
    )
    over = () if "experts" in whole else _lies_on("experts", mesh)
    summed = () if "mlp" in whole else _lies_on("mlp", mesh)
    apart = bool(over and rows)

    def run(tokens: Sequence[Array], kernels: Sequence[Array]) -> Array:
        first = jax.lax.axis_index(over) * len(kernels[0]) if over else 0
        if apart:
            tokens = [jax.lax.all_gather(x, over, tiled=True) for x in tokens]
        out = function(first, tokens, kernels)
        if apart:
            out = jax.lax.psum_scatter(out, over, tiled=True)
        elif over:
            out = jax.lax.psum(out, over)
        return jax.lax.psum(out, summed) if summed else out

    def spec(names: Sequence[str | None]) -> PartitionSpec:
        return PartitionSpec(*(None if n in whole else _lies_on(n, mesh) or None for n in names))

    own = PartitionSpec(rows or None, length or None)
    specs: Any = ([own] * len(tokens), [spec(names) for names in axes])
    mapped = jax.shard_map(run, in_specs=specs, out_specs=own, check_vma=False)
    return mapped(list(tokens), list(kernels))


def platform() -> str:
    """Of the devices that a program is compiled for: those of the mesh in force, there or not."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def active_parts(axis: str) -> int:
    """Into how many parts the mesh in force cuts a logical axis, 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else _parts(axis, mesh)


def put_rows(rows: np.ndarray, mesh: Mesh, *, whole: bool = False) -> Array:
    """An array of all processes, its first axis over the batch axes.

    Args:
      rows: those of this process's shards, in order (`process_shards`).
      mesh: of all processes.
      whole: whether they are all there are, alike in every process.
    """
    sharding = NamedSharding(mesh, PartitionSpec(batch_axes(mesh)))
    count = len(rows)
    if not whole:
        count = count // len(process_shards(mesh, jax.process_index())) * batch_shards(mesh)
    return jax.make_array_from_process_local_data(sharding, rows, (count, *rows.shape[1:]))


def put_batch(
    columns: Mapping[str, np.ndarray], mesh: Mesh, *, whole: bool = False
) -> dict[str, Array]:
    """`put_rows` of each column."""
    return {name: put_rows(column, mesh, whole=whole) for name, column in columns.items()}


def fetch(tree: Any) -> Any:
    """Arrays as numpy, whole, in every process; all processes ask for them.

    Args:
      tree: of arrays of the mesh.
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def alone() -> AbstractContextManager[Any]:
    """Within it no array lies over a mesh: what this process computes concerns no other."""
    return jax.set_mesh(one_device())
