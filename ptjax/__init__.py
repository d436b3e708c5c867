"""Post-training of language models in JAX: pure losses, one train loop, real weights in and out.

    import ptjax

    config = ptjax.config.load("configs/quickstart.py")
    run = ptjax.train(config, "runs/quickstart")
    print(ptjax.reply(run.bundle, ["Who are you?"]))
    ptjax.export(run.bundle, "runs/quickstart/export")
    bundle = ptjax.load("runs/quickstart")

Nothing is imported before it is asked for: `import ptjax` does not import jax.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

from ptjax.errors import until_run

__all__ = ["UserError", "config", "data", "embed", "export", "load", "reply", "sample", "train"]
__version__ = "0.1.0"

_FUNCTIONS = {
    "UserError": "ptjax.errors",
    "embed": "ptjax.embeddings",
    "export": "ptjax.export.writing",
    "load": "ptjax.workdir",
    "reply": "ptjax.generate.replies",
    "sample": "ptjax.generate",
    "train": "ptjax.loop",
}
_MODULES = ("config", "data")


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for."""
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return __all__


class _Package(ModuleType):
    """Keeps `ptjax.train` the function when the module of that name, a command, is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _FUNCTIONS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
if sys.argv[:1] == ["-m"]:  # a command of ours, whose modules python has yet to import
    sys.excepthook = until_run
