"""Compiled programs are kept on disk, so that a second start of a command is quicker."""

import os
import re
import warnings
from pathlib import Path
from typing import Any

_UNREADABLE = re.compile(r"Error reading persistent compilation cache entry for '([^']+)'")


def keep_programs() -> None:
    """Keeps what jax compiles in `~/.cache/ptjax/xla`, or where `JAX_COMPILATION_CACHE_DIR` says.

    jax writes an entry in place and never replaces it: one that a kill cut short would cost a
    warning and a compilation at every start. It is removed when it is met, and so written anew.
    """
    import jax

    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = str(Path(home) / "ptjax" / "xla")
        jax.config.update("jax_compilation_cache_dir", folder)
    if folder and "://" not in folder:
        warnings.showwarning = _RemovesCutEntries(Path(folder), warnings.showwarning)


class _RemovesCutEntries:
    """Shows warnings, but for that of an entry that cannot be read: its file goes."""

    def __init__(self, folder: Path, show: Any):
        self._folder = folder
        self._show = show

    def __call__(self, message: Any, *where: Any, **more: Any) -> None:
        found = _UNREADABLE.match(str(message))
        if not found:
            self._show(message, *where, **more)
            return
        for entry in self._folder.glob(f"{found[1]}-*-cache"):
            entry.unlink(missing_ok=True)
