"""Files of a model's own answers: `make_pairs` and `make_answers`, each with a command.

`python -m ptjax.preferences`, `python -m ptjax.answers`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptjax.preferences.answers import make_answers
    from ptjax.preferences.make import Made, make_pairs
    from ptjax.preferences.settings import AnswerSettings, Settings

__all__ = ["AnswerSettings", "Made", "Settings", "make_answers", "make_pairs"]

_HOME = {
    "AnswerSettings": "settings",
    "Made": "make",
    "Settings": "settings",
    "make_answers": "answers",
    "make_pairs": "make",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for: `--help` must not wait for jax."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
