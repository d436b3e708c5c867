"""GPUs that need not be there: XLA compiles for what it is told of a GPU, as for one it finds."""

import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from ptjax.errors import UserError

PLUGINS = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")


class Gpu(NamedTuple):
    """What XLA asks of a GPU, and the rates of a plan.

    Attributes:
      kind: `device_kind`.
      capability: its major version.
      cores: streaming multiprocessors.
      lanes: float32 units of each.
      clock: GHz.
      shared: bytes of shared memory of a core.
      cache: bytes of L2.
      memory: bytes.
      memory_rate: bytes a second.
      link_rate: bytes a second that it sends over NVLink.
    """

    kind: str
    capability: int
    cores: int
    lanes: int
    clock: float
    shared: int
    cache: int
    memory: int
    memory_rate: float
    link_rate: float


# As CUDA tells of each, by XLA's own list (openxla/xla, xla/backends/gpu/target_config/specs).
# Links: half of the datasheets' figure, which is for both directions.
GPUS = {
    "a100": Gpu(
        *("NVIDIA A100-SXM4-80GB", 8, 108, 64, 1.41, 167_936, 41_943_040),
        *(85_100_068_864, 2039.04e9, 300e9),
    ),
    "a100-40gb": Gpu(
        *("NVIDIA A100-SXM4-40GB", 8, 108, 64, 1.41, 167_936, 41_943_040),
        *(42_331_013_120, 1555.2e9, 300e9),
    ),
    "h100": Gpu(
        *("NVIDIA H100 80GB HBM3", 9, 132, 128, 1.98, 233_472, 52_428_800),
        *(84_942_979_072, 3352.32e9, 450e9),
    ),
    "h200": Gpu(
        *("NVIDIA H200 141GB HBM3e", 9, 132, 128, 1.98, 233_472, 52_428_800),
        *(151_397_597_184, 4800e9, 450e9),
    ),
    "b200": Gpu(
        *("NVIDIA B200", 10, 148, 128, 1.965, 233_472, 132_644_864),
        *(191_514_411_008, 7672.32e9, 900e9),
    ),
}
"""By the name that `--topology` takes, of the boards that NVLink joins."""


def devices(name: str, slices: int) -> Sequence[Any]:
    """So many GPUs that need not be there, those of each machine together.

    Args:
      name: `h100:8`: of `GPUS`, and how many a machine has.
      slices: machines.

    Raises:
      UserError: no such number, or no plugin.
    """
    model, _, count = name.partition(":")
    if not re.fullmatch(r"[1-9]\d*", count):
        raise UserError(
            f"--topology={name}: GPUs of a machine are counted, such as {model}:8; --slices says "
            "how many machines"
        )
    if not installed():
        raise UserError(
            f"--topology={name} needs the GPU compiler, which needs no GPU: pip install "
            "'jax[cuda12]' in an environment of its own"
        )
    from jax.experimental import topologies

    shape = f"{slices}x1x{count}"
    told = _target(GPUS[model])
    try:
        found = topologies.get_topology_desc(platform="cuda", target_config=told, topology=shape)
    except Exception as error:  # whatever the plugin raises, it is about what it was told
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"--topology={name}: the GPU compiler refuses it: {reason}") from error
    return found.devices


def usable(gpu: Gpu) -> int:
    """Bytes that jax takes of a GPU: three quarters, or as the environment says."""
    given = os.environ.get("XLA_CLIENT_MEM_FRACTION")
    given = given or os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION")
    try:
        return int(gpu.memory * float(given or 0.75))
    except ValueError as error:
        raise UserError(f"XLA_CLIENT_MEM_FRACTION={given}: a number is meant") from error


def installed() -> bool:
    """Whether the GPU compiler is there: jax's plugin, of either version of CUDA."""
    parts = importlib.util.find_spec("jax_plugins")
    return parts is not None and any(importlib.util.find_spec(plugin) for plugin in PLUGINS)


def _target(gpu: Gpu) -> str:
    """What XLA is told: a `GpuTargetConfigProto` as text."""
    features = "ACCELERATED_FEATURES" if gpu.capability >= 9 else "NONE"
    return f"""
gpu_device_info {{
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {gpu.shared - 1024}
  shared_memory_per_core: {gpu.shared}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.lanes}
  clock_rate_ghz: {gpu.clock}
  l2_cache_size: {gpu.cache}
  device_memory_size: {gpu.memory}
  memory_bandwidth: {int(gpu.memory_rate)}
  cuda_compute_capability {{ major: {gpu.capability} feature_extension: {features} }}
}}
platform_name: "CUDA"
runtime_version {{ major: 12 minor: 8 }}
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{gpu.kind}"
"""
