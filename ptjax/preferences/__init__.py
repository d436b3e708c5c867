"""Preference pairs of a model's own answers: `make_pairs`, and `python -m ptjax.preferences`."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptjax.preferences.make import Made, make_pairs
    from ptjax.preferences.settings import Settings

__all__ = ["Made", "Settings", "make_pairs"]

_HOME = {"Made": "make", "Settings": "settings", "make_pairs": "make"}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for: `--help` must not wait for jax."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
