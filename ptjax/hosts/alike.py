"""What must be alike on all processes of a run is compared before it is used."""

import hashlib
import importlib.metadata
import json
import platform
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from ptjax.errors import UserError
from ptjax.hosts import exchange

_PACKAGES = ("jax", "jaxlib", "numpy", "optax", "transformers")


def check_alike(ask: Callable[[], Mapping[str, Any]]) -> None:
    """Compares facts of this process with those of process 0; called by all, in order.

    Args:
      ask: gives facts by the name under which a difference is told, of what JSON can hold; not
        called where there is one process.

    Raises:
      UserError: on all processes, naming what differs and where.
    """
    if jax.process_count() == 1:
        return
    own = json.loads(json.dumps(ask()))
    wanted = exchange.from_each(lambda: own if jax.process_index() == 0 else None)[0]
    differing = [
        f"{name} is {_shown(own, name)}, on process 0 it is {_shown(wanted, name)}"
        for name in (*wanted, *(name for name in own if name not in wanted))
        if name not in own or name not in wanted or own[name] != wanted[name]
    ]
    told = exchange.from_each(lambda: [socket.gethostname(), differing])
    for process, (host, lines) in enumerate(told):
        if lines:
            more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
            raise UserError(
                f"process {process} of {len(told)} (on {host}) differs: {lines[0]}{more}; give all "
                "processes the same command, files and packages"
            )


def code() -> dict[str, str]:
    """What this process runs: versions, and a digest of every file of the package."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    python = ".".join(platform.python_version_tuple()[:2])
    return {"Python": python, **versions, "the code of ptjax": digest.hexdigest()[:12]}


def _shown(facts: Mapping[str, Any], name: str) -> str:
    text = repr(facts[name]) if name in facts else "not there"
    return text if len(text) <= 80 else f"{text[:77]}..."
