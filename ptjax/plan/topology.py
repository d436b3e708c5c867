"""Devices to plan for: those at hand, or TPUs and GPUs that need not be there."""

import importlib.util
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from ptjax.errors import UserError, did_you_mean
from ptjax.metrics import peak_flops
from ptjax.plan import gpus

GIB = 2**30


class Chip(NamedTuple):
    """What one jax device can do.

    Attributes:
      kind: `device_kind`.
      memory: bytes that programs may use; None where nothing says so.
      flops: peak of dense matrix products, a second, in the dtype of the plan.
      memory_rate: bytes a second of its memory.
      link_rate: bytes a second that it sends over all of its links to chips of its slice.
      slice_rate: bytes a second that it sends to other slices.
    """

    kind: str
    memory: int | None
    flops: float | None
    memory_rate: float | None = None
    link_rate: float | None = None
    slice_rate: float | None = None


# device_kind -> usable HBM in GiB, and HBM, links and data centre network in GB/s, of one jax
# device. HBM: what the TPU compiler says that programs may use. Rates: docs.cloud.google.com/tpu/
# docs/{v4,v5e,v5p,v6e}; half of the links' figure for both directions is one direction's; a network
# of a pod is divided by its chips. tpu7x: the announcement of Ironwood, April 2025; a chip is two
# devices, so the row holds half its figures. None: not found.
_TPUS: dict[str, tuple[float, float | None, float | None, float | None]] = {
    "TPU v4": (30.75, 1200.0, None, None),
    "TPU v5 lite": (15.75, 819.0, 200.0, 3.125),
    "TPU v5": (95.74, 2765.0, 600.0, 6.25),
    "TPU v6 lite": (31.25, 1638.0, 400.0, 12.5),
    "TPU7x": (94.75, 3685.0, 300.0, None),
}


_AT_HAND = ("cpu", "gpu", "tpu")
# Generation -> an example of its shapes, and chips of a pod (docs.cloud.google.com/tpu/docs).
_PODS = {
    "v4": ("2x2x1", 4096),
    "v5e": ("2x4", 256),
    "v5p": ("2x2x1", 8960),
    "v6e": ("2x4", 256),
    "tpu7x": ("2x2x1", 9216),
}
_AWAY = (*_PODS, *gpus.GPUS)


class Topology(NamedTuple):
    """Devices, and what they are called.

    Attributes:
      name: as asked for.
      devices: in their order.
      slices: groups of devices with a slower network between them.
      chip: what each of them can do.
    """

    name: str
    devices: Sequence[Any]
    slices: int
    chip: Chip

    def slices_of(self, mesh: Mesh) -> list[int]:
        """The slice of each device of a mesh, in its order.

        GPUs that are not there say 0, all of them; their process is the machine that they are in.
        """
        machines = self.slices > 1 and mesh.devices.flat[0].platform == "gpu"
        name = "process_index" if machines else "slice_index"
        return [getattr(device, name, 0) for device in mesh.devices.flat]


def topology(name: str, *, slices: int = 1, dtype: str = "bfloat16") -> Topology:
    """The devices of a name: `cpu` or `gpu` for those at hand, `v5e:2x4` or `h100:8` for others.

    Args:
      name: of TPUs `v5e:2x4`, `v5p:4x4x4`, `v6e:1x1`, `tpu7x:2x2x1`, ...; of GPUs one of
        `gpus.GPUS` and how many a machine has.
      slices: of that shape, joined by the data centre's network; of GPUs machines.
      dtype: of the computation, for the peak.

    Raises:
      UserError: no such devices, no compiler, a shape that the compiler does not know.
    """
    generation, away, shape = name.partition(":")
    if not away:
        devices = _at_hand(name, slices)
    elif generation in gpus.GPUS:
        devices = gpus.devices(name, slices)
    elif generation in _PODS:
        devices = _tpus(name, shape, slices)
    else:
        raise UserError(f"--topology={name}: no such devices{did_you_mean(generation, _AWAY)}")
    return Topology(name, devices, slices, _chip(devices[0], dtype, there=not away))


def _at_hand(name: str, slices: int) -> Sequence[Any]:
    if name not in _AT_HAND:
        if name in _AWAY:
            example = _PODS[name][0] if name in _PODS else "8"
            raise UserError(f"--topology={name}: how many are meant, such as {name}:{example}")
        close = did_you_mean(name, (*_AT_HAND, *_AWAY))
        raise UserError(f"--topology={name}: no such devices{close}")
    if slices != 1:
        raise UserError(f"--slices={slices}: the devices at hand are one slice")
    try:
        return jax.devices(name)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--topology={name}: no such devices here; name others, such as v5e:2x4 or h100:8 "
            f"({reason})"
        ) from error


def _tpus(name: str, shape: str, slices: int) -> Sequence[Any]:
    generation = name.partition(":")[0]
    example, pod = _PODS[generation]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or shape.count("x") != example.count("x"):
        raise UserError(
            f"--topology={name}: a shape of {example.count('x') + 1} numbers is meant, such as "
            f"{generation}:{example}"
        )
    chips = math.prod(map(int, shape.split("x")))
    if chips > pod:
        raise UserError(
            f"--topology={name}: a pod has {pod:,} chips, this shape {chips:,}; --slices joins many"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={name} needs the TPU compiler, which needs no TPU: pip install 'jax[tpu]' "
            "in an environment of its own"
        )
    from jax.experimental import topologies

    asked: dict[str, Any] = {"chip_config_name": "megacore"} if generation == "v4" else {}
    if chips == 1:
        asked["chips_per_host_bounds"] = (1, 1, 1)
    if slices > 1:
        asked["num_slices"] = slices
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **asked)
    except Exception as error:  # whatever the plugin raises, it is about the name
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"--topology={name}: the TPU compiler does not know it: {reason}"
        ) from error
    return found.devices


def _chip(device: Any, dtype: str, *, there: bool) -> Chip:
    kind = device.device_kind
    flops = peak_flops(kind, dtype)
    if kind in _TPUS:
        memory, *rates = _TPUS[kind]
        rates = [None if rate is None else rate * 1e9 for rate in rates]
        return Chip(kind, int(memory * GIB), flops, *rates)
    gpu = next((gpu for gpu in gpus.GPUS.values() if gpu.kind == kind), None)
    rates = (gpu.memory_rate, gpu.link_rate) if gpu else (None, None)
    if gpu and not there:
        return Chip(kind, gpus.usable(gpu), flops, *rates)
    stats = (device.memory_stats() if device.platform == "gpu" else None) or {}
    return Chip(kind, stats.get("bytes_limit"), flops, *rates)
