"""What a function's signature says of its hyperparameters: names, defaults, types."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

from ptjax.errors import UserError

_SIMPLE: dict[Any, tuple[type, str]] = {
    bool: (bool, "True or False"),
    int: (Integral, "an int"),
    float: (Real, "a number"),
    str: (str, "a string"),
    type(None): (type(None), "None"),
}


def keywords(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only arguments of a function and their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def typed(function: Callable[..., Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values as a function takes them: of the types annotated, or where none is, of the defaults'.

    Args:
      function: whose keyword-only arguments are looked at.
      given: values by name.
      where: the group they stand in, for the message.

    Returns:
      The values, an int for a float as a float.

    Raises:
      UserError: names the first of them, the type that is meant, and what was given.
    """
    values = dict(given)
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY or name not in given:
            continue
        kind: Any = parameter.annotation
        if kind is parameter.empty or isinstance(kind, str):
            kind = Any if parameter.default is None else type(parameter.default)
        if not _fits(given[name], kind):
            raise UserError(f"{where}.{name} expects {_described(kind)}, got {given[name]!r}")
        if kind is float:
            values[name] = float(given[name])
    return values


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type; of one that no config holds, anything is."""
    if kind in _SIMPLE:
        return isinstance(value, _SIMPLE[kind][0]) and (kind is bool or not isinstance(value, bool))
    parts = typing.get_args(kind)
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return any(_fits(value, part) for part in parts)
    if typing.get_origin(kind) is tuple and parts[1:] == (...,):
        return isinstance(value, list | tuple) and all(_fits(item, parts[0]) for item in value)
    return True


def _described(kind: Any) -> str:
    if kind in _SIMPLE:
        return _SIMPLE[kind][1]
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        return f"a tuple, each item {_described(parts[0])}"
    return ", or ".join(map(_described, parts))
