"""The host's part of a state (data position, seed, counters, configuration), as JSON."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

NAME = "host.json"


def dump(host: Mapping[str, Any]) -> str:
    """Returns the file's text.

    Raises:
      TypeError: for what JSON cannot hold, or would change without a word.

    """
    _check(host, "host")
    return json.dumps(host, indent=1)


def load(folder: epath.Path) -> dict[str, Any]:
    """Reads the file of a step."""
    return json.loads((folder / NAME).read_text())


def _check(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"host state {where}: key {key!r} is not a string")
            _check(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check(item, f"{where}[{index}]")
    elif not isinstance(value, str | int | float | bool | None):
        raise TypeError(f"host state {where} is {type(value).__name__}, which JSON cannot hold")
