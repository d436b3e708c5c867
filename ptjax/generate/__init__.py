"""Sampling from a model: prefill, decode with a cache, stop, stream."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptjax.generate.engine import sample
    from ptjax.generate.sampling import Sampling, draw
    from ptjax.generate.transcript import Completion

__all__ = ["Completion", "Sampling", "draw", "sample"]

_HOME = {"Completion": "transcript", "Sampling": "sampling", "draw": "sampling", "sample": "engine"}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for: `--help` must not wait for jax."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
