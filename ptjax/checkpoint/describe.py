"""What a manifest says of the run that saves."""

import datetime
import importlib.metadata
from collections.abc import Mapping
from typing import Any, SupportsFloat

import jax

from ptjax.checkpoint import arrays
from ptjax.checkpoint.manifest import Manifest


def describe(
    step: int,
    leaves: Mapping[str, jax.Array],
    config_hash: str,
    metrics: Mapping[str, SupportsFloat],
) -> Manifest:
    """Returns the manifest of a state, its files still to be listed."""
    meshes = [getattr(leaf.sharding, "mesh", None) for leaf in leaves.values()]
    mesh: Any = next((mesh for mesh in meshes if mesh is not None), None)
    return Manifest(
        step=step,
        config_hash=config_hash,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions={name: _version(package) for name, package in _PACKAGES.items()},
        topology={
            "devices": jax.device_count(),
            "platform": jax.default_backend(),
            "processes": jax.process_count(),
            "mesh": {} if mesh is None else dict(mesh.shape),
        },
        metrics={name: float(value) for name, value in metrics.items()},
        leaves=arrays.specs(leaves),
    )


_PACKAGES = {"ptjax": "ptjax", "jax": "jax", "orbax": "orbax-checkpoint"}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
