"""Checkpoints that are committed by a manifest, verified by SHA-256, and never silently wrong."""

import importlib
from typing import Any

_HOME = {
    "Checkpoints": "manager",
    "Restored": "reading",
    "Stored": "reading",
    "Watch": "preemption",
    "open_step": "reading",
    "watch": "preemption",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for: `--help` must not wait for jax."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
