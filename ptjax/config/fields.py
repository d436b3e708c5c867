"""The fields of a config by dotted path: set one, list them, find those still missing."""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import config_dict
from ml_collections.config_dict import ConfigDict

from ptjax.config.values import read
from ptjax.errors import UserError, did_you_mean

Key = str | int
_OPEN = "hparams"
"""The group that takes any key, for the method knows them."""
_PART = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")


def override(config: ConfigDict, path: str, value: Any) -> None:
    """Sets `config.<path>` in place; a string is read as the type of the field's default.

    An empty group, `hparams` and a dict inside a list take any key (their readers check it),
    everything else must exist. `None` (or `none`, where the field is neither a string nor a new key
    of `hparams`, of which several have a choice of that name) unsets a field or a whole group.

    Args:
      config: what `get_config` returned.
      path: `optimizer.lr`, `data.sources[0].path` or `data.sources.0.path`.
      value: a string as typed on the command line, or a Python value.

    Raises:
      UserError: there is no such field, or the value has the wrong type.
    """
    keys = _split(path)
    holder: Any = config
    for depth, key in enumerate(keys[:-1]):
        holder = _child(config, holder, keys[: depth + 1], key)
    last = keys[-1]
    where = name(keys)
    if isinstance(holder, list | tuple):
        index = _index(holder, last, keys[:-1])
        items = list(holder)
        items[index] = read(value, type(items[index]), items[index], where)
        _replace(config, keys[:-1], holder, items)
    elif not isinstance(holder, ConfigDict | dict):
        raise UserError(
            f"{where}: {name(keys[:-1])} is {holder!r}, which has no keys; set it whole, "
            f"as in --{name(keys[:-1])}=\"{{'{last}': {value}}}\""
        )
    elif last not in holder:
        if isinstance(holder, ConfigDict) and len(holder) and keys[:-1] != (_OPEN,):
            raise UserError(_unknown(config, holder, keys))
        is_choice = value == "none" and keys[:-1] == (_OPEN,)
        holder[last] = value if is_choice else read(value, type(None), None, where)
    elif isinstance(holder, ConfigDict):
        kind, default = _field(holder, str(last))
        new = read(value, kind, default, where)
        if isinstance(default, ConfigDict) and new is not None:
            for key, item in new.items():
                override(config, f"{path}.{key}", item)
        else:
            holder[str(last)] = ConfigDict(new) if _is_group(kind, new) else new
    else:
        holder[last] = read(value, type(holder[last]), holder[last], where)


def _is_group(kind: type, value: Any) -> bool:
    return issubclass(kind, ConfigDict) and isinstance(value, dict)


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted path, value) of every leaf; lists of groups are walked, others are leaves."""
    if isinstance(config, ConfigDict):
        items = [(key, _field(config, key)[1]) for key in config]
    elif isinstance(config, Mapping):
        items = list(config.items())
    else:
        items = [(f"[{i}]", item) for i, item in enumerate(config)]
    for key, value in items:
        path = f"{prefix}{key}" if str(key).startswith("[") or not prefix else f"{prefix}.{key}"
        nested = isinstance(value, ConfigDict | Mapping) and len(value)
        listed = isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value)
        if nested or listed:
            yield from leaves(value, path)
        else:
            yield path, value


def missing(config: ConfigDict, prefix: str = "config") -> list[str]:
    """The paths of every `config_dict.required_placeholder` that has no value yet."""
    found = []
    for key, value in config.items(preserve_field_references=True):
        path = f"{prefix}.{key}"
        if isinstance(value, ConfigDict):
            found += missing(value, path)
        elif isinstance(value, config_dict.FieldReference):
            try:
                value.get()
            except config_dict.RequiredValueError:
                found.append(path)
    return found


def name(keys: tuple[Key, ...] | list[Key]) -> str:
    """`("data", "sources", 0)` as the user writes it: `config.data.sources[0]`."""
    return "config" + "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in keys)


def _split(path: str) -> tuple[Key, ...]:
    parts = list(_PART.finditer(path))
    if not parts or "".join(p.group() for p in parts) != path:
        raise UserError(f"config.{path}: not a path of keys such as data.sources[0].path")
    words = [p.group(1) or int(p.group(2)) for p in parts]
    return tuple(int(w) if isinstance(w, str) and w.isdigit() else w for w in words)


def _field(holder: ConfigDict, key: str) -> tuple[type, Any]:
    """A field's declared type and its value, None where it is required and not yet given."""
    raw = dict(holder.items(preserve_field_references=True))[key]
    if not isinstance(raw, config_dict.FieldReference):
        return type(raw), raw
    try:
        return raw.get_type(), raw.get()
    except config_dict.RequiredValueError:
        return raw.get_type(), None


def _child(config: ConfigDict, holder: Any, keys: tuple[Key, ...], key: Key) -> Any:
    if isinstance(holder, list | tuple):
        return holder[_index(holder, key, keys[:-1])]
    if not isinstance(holder, ConfigDict | dict) or key not in holder:
        raise UserError(_unknown(config, holder, keys))
    return _field(holder, str(key))[1] if isinstance(holder, ConfigDict) else holder[key]


def _index(items: list | tuple, key: Key, parents: tuple[Key, ...]) -> int:
    if not isinstance(key, int):
        raise UserError(
            f"{name((*parents, key))}: {name(parents)} is a list; write [0] for its first item"
        )
    if key >= len(items):
        raise UserError(
            f"{name((*parents, key))}: {name(parents)} has {len(items)} item(s), counted from 0"
        )
    return key


def _replace(config: ConfigDict, keys: tuple[Key, ...], old: Any, items: list) -> None:
    if isinstance(old, list):
        old[:] = items
        return
    holder: Any = config
    for depth, key in enumerate(keys[:-1]):
        holder = _child(config, holder, keys[: depth + 1], key)
    holder[keys[-1]] = tuple(items)


def _unknown(config: ConfigDict, holder: Any, keys: tuple[Key, ...]) -> str:
    """The line for a key that is not there, with the likeliest path the user meant."""
    where, last = name(keys), str(keys[-1])
    siblings = [str(key) for key in holder] if isinstance(holder, ConfigDict | dict) else []
    everywhere = [path for path, _ in leaves(config)]
    elsewhere = [path for path in everywhere if path.rpartition(".")[2] == last]
    if elsewhere and not difflib.get_close_matches(last, siblings, n=1, cutoff=0.8):
        hint = f"; did you mean 'config.{elsewhere[0]}'?"
    else:
        hint = did_you_mean(last, siblings)
    return f"{where}: unknown key {last!r}{hint}"
