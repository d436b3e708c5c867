"""Models as folders that any Hugging Face tool loads: whole, merged, or adapters alone."""

import importlib
from typing import Any

_HOME = {"export": "writing", "Exported": "writing"}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for: `--help` must not wait for jax."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
