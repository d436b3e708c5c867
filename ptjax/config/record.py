"""A config as JSON, its hash, and what changed between two: what a checkpoint keeps of it."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ml_collections.config_dict import ConfigDict

from ptjax.config.fields import leaves
from ptjax.errors import UserError


def to_json(config: ConfigDict | Mapping[str, Any], *, indent: int | None = None) -> str:
    """The config as JSON with sorted keys; tuples become lists.

    Raises:
      UserError: a value is not a number, string, bool, None, list or dict.
    """
    return json.dumps(_plain(config, "config"), sort_keys=True, indent=indent)


def from_json(text: str) -> ConfigDict:
    """Reads what `to_json` wrote."""
    return ConfigDict(json.loads(text))


def config_hash(config: ConfigDict | Mapping[str, Any]) -> str:
    """SHA-256 of `to_json(config)`, in hexadecimal: equal for equal configs, on every machine."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()


def facts(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """`{path: value}` of every field, as JSON holds it."""
    return dict(leaves(_plain(config, "config"), "config"))


def changed_keys(
    old: ConfigDict | Mapping[str, Any], new: ConfigDict | Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """`{path: (old value, new value)}` of every field that differs; None where a side lacks it."""
    before, after = (dict(leaves(_plain(side, "config"))) for side in (old, new))
    paths = sorted(before.keys() | after.keys())
    return {p: (before.get(p), after.get(p)) for p in paths if before.get(p) != after.get(p)}


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, ConfigDict | Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(
        f"{where} holds a {type(value).__name__}, which no checkpoint can store; "
        "give a number, a string, a list, a dict or a dotted path"
    )
