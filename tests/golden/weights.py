"""Deterministic tensors by name, so that golden numbers need no committed weights.

Uses `numpy.random.RandomState`, whose stream numpy keeps the same in all its versions.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent


def tensor(name: str, shape: tuple[int, ...], *, center: float = 1.0) -> np.ndarray:
    """A float32 tensor that depends on its name and shape alone; no entry is 0 or 1 by design.

    Matrices are N(0, 1/last dimension), biases N(0, 0.2²), norm weights N(center, 0.2²), other
    vectors (DoRA's magnitudes) 1 + |N(0, 0.2²)|. `center` is 0 for norms that multiply by 1 + w.
    """
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) > 1:
        return (noise / np.sqrt(shape[-1])).astype(np.float32)
    if "norm" in name:
        return (center + 0.2 * noise).astype(np.float32)
    if name.endswith("bias"):
        return (0.2 * noise).astype(np.float32)
    return (1 + 0.2 * np.abs(noise)).astype(np.float32)


def probe(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The direction a gradient is projected on: N(0, 1), float64, by name."""
    return np.random.RandomState(zlib.crc32(f"probe {name}".encode())).standard_normal(shape)


def summary(name: str, gradient: np.ndarray) -> np.ndarray:
    """A gradient in three numbers: its sum, its L2 norm, its product with `probe`. float64 [3]."""
    gradient = np.asarray(gradient, np.float64)
    projection = (gradient * probe(name, gradient.shape)).sum()
    return np.array([gradient.sum(), np.sqrt((gradient**2).sum()), projection])


def norm_center(config: dict[str, Any]) -> float:
    """0 for the families whose norms multiply by 1 + w, else 1."""
    return 0.0 if config["model_type"].startswith("gemma") else 1.0


def state_dict(shapes: dict[str, tuple[int, ...]], config: dict[str, Any]) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint, under the names of the Hugging Face layout."""
    center = norm_center(config)
    return {name: tensor(name, tuple(shape), center=center) for name, shape in shapes.items()}


def load(name: str) -> dict[str, Any]:
    """One golden file, `folder/stem`: arrays as they are, entries ending in `_json` decoded."""
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    for key in [key for key in arrays if key.endswith("_json")]:
        arrays[key.removesuffix("_json")] = json.loads(str(arrays.pop(key)))
    return arrays
