"""A value typed by a user, read as the type of the default that it replaces."""

import ast
from collections.abc import Mapping
from typing import Any

from ml_collections.config_dict import ConfigDict

from ptjax.errors import UserError

_UNREADABLE = (ValueError, SyntaxError, TypeError, OverflowError, RecursionError)
_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class _NoValue(str):
    """What `--config.flag` gives: true where that can be, and a mistake elsewhere."""


NO_VALUE = _NoValue("true")


def read(value: Any, kind: type, default: Any, where: str) -> Any:
    """`value` as a `kind`; strings are parsed, other values must already be of the type."""
    if value is NO_VALUE:
        if kind not in (bool, object, type(None)):
            raise UserError(f"{where} has no value: give {described(kind)}, as in --{where}=...")
        return True
    if value is None or value == "None" or (value == "none" and kind is not str):
        return None
    if not isinstance(value, str):
        if kind is float and type(value) is int:
            return float(value)
        groups = issubclass(kind, ConfigDict) and isinstance(value, Mapping)
        wrong_bool = isinstance(value, bool) and kind in (int, float)
        if groups or kind in (object, type(None)) or (isinstance(value, kind) and not wrong_bool):
            return value
        raise UserError(f"{where} expects {described(kind)}, got {value!r}")
    try:
        return _parse(value, kind, default)
    except _UNREADABLE:
        if isinstance(default, ConfigDict) and len(default):
            keys = ", ".join(default)
            raise UserError(f"{where} is a group of settings; set one of: {keys}") from None
        raise UserError(f"{where} expects {described(kind)}, got {value!r}") from None


def _parse(text: str, kind: type, default: Any) -> Any:
    if kind is str:
        return text
    if kind is bool:
        if text.lower() not in _WORDS:
            raise ValueError(text)
        return _WORDS[text.lower()]
    if kind is int:
        return _integer(text)
    if kind is float:
        return float(text)
    if kind in (list, tuple):
        return kind(_items(text, default))
    if issubclass(kind, Mapping | ConfigDict):
        parsed = ast.literal_eval(text)
        if not isinstance(parsed, dict):
            raise ValueError(text)
        return parsed
    return _literal(text)


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if number != int(number):
            raise ValueError(text) from None
        return int(number)


def _items(text: str, default: Any) -> list:
    """`[1, 2]`, `(1, 2)`, `1,2` or `q,v`; items take the type of the default's first item."""
    try:
        parsed = ast.literal_eval(text) if text.strip() else []
    except _UNREADABLE:
        if text.lstrip()[:1] in "[({":
            raise
        parsed = [item.strip() for item in text.split(",")]
    items = list(parsed) if isinstance(parsed, list | tuple) else [parsed]
    kind = type(default[0]) if default else type(None)
    if kind in (int, float, str, bool):
        return [
            _parse(item, kind, None) if isinstance(item, str) else _cast(item, kind)
            for item in items
        ]
    return items


def _cast(item: Any, kind: type) -> Any:
    if kind is str:
        return str(item)
    if kind is float and type(item) is int:
        return float(item)
    if type(item) is not kind:
        raise ValueError(item)
    return item


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except _UNREADABLE:
        return text


def described(kind: Any) -> str:
    """What a value of a type looks like, for messages."""
    names = {
        int: "an int",
        float: "a number",
        bool: "true or false",
        str: "a string",
        list: "a list such as [1, 2]",
        tuple: "a tuple such as (1, 2)",
        dict: "a dict such as {'key': 1}",
        ConfigDict: "a dict such as {'key': 1}",
    }
    return names.get(kind, f"a value of type {kind.__name__}")
