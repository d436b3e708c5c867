"""What a reward is, how a config names one, and how several become one score.

A reward is a plain function of texts, or an `async` one:

    def polite(prompts, completions, *, word="please", **columns):
        return [float(word in completion) for completion in completions]

Keyword-only arguments are its settings; one annotated `Reward`, `Sequence[Reward]` or
`Mapping[str, Reward]` is written in a config as rewards are, and is read with it. Other arguments
after the first two are columns of the rows, each a list; `**columns` takes all there are. It
returns a number for each completion, None where it abstains, or an exception (`Failed`) where that
completion's value is missing.
"""

import importlib.util
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ptjax.rewards as index
from ptjax.errors import UserError, check_keys, did_you_mean
from ptjax.lookup import find

TIME_LIMIT = 600.0
"""Seconds that a reward may take for all completions of a call, where a config gives no other."""

_OWN = ("name", "weight", "time_limit")


class Failed(Exception):
    """Why one completion's value is missing; stands in a reward's list in place of a number."""


@dataclass(frozen=True)
class Reward:
    """A reward function with its settings fixed.

    Attributes:
      name: a row of `REWARDS` or a dotted path.
      function: `(prompts, completions, **columns) -> list[float | None]`, plain or async.
      weight: what its values are multiplied by in a sum of several.
      settings: its keyword-only arguments.
      time_limit: seconds that a call of it may take, after which all its values are missing; None:
        any, and it runs on the thread that asks.
    """

    name: str
    function: Callable[..., Any]
    weight: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    time_limit: float | None = TIME_LIMIT

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> Any:
        """What the function returns, or its awaitable.

        Raises:
          UserError: a column that it needs is not there.
        """
        passed = accepted(self.function, columns, f"reward {self.name}")
        lists = {name: list(column) for name, column in passed.items()}
        return self.function(list(prompts), list(completions), **lists, **self.settings)


def accepted(
    function: Callable[..., Any], columns: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Those columns that a function takes after its first two arguments.

    Raises:
      UserError: one that it needs is not there.
    """
    named, takes_all, first = _columns(function)
    for parameter in named:
        if parameter.default is parameter.empty and parameter.name not in columns:
            hint = did_you_mean(parameter.name, columns)
            raise UserError(f"{where}: no column {parameter.name!r}{hint}")
    asked = {parameter.name for parameter in named}
    if takes_all:
        asked |= {*columns} - {*settings_of(function), *first}
    return {name: column for name, column in columns.items() if name in asked}


def named(name: str) -> Callable[..., Any]:
    """A reward function by its row in `REWARDS`, or by dotted path.

    Raises:
      UserError: no such row, module or attribute; not a function of prompts and completions.
    """
    found = find(name, index.REWARDS, "reward")
    if not callable(found):
        raise UserError(f"reward {name!r} is not a function")
    try:
        first = _columns(found)[2]
    except (TypeError, ValueError) as error:
        raise UserError(f"reward {name!r}: {error}") from error
    if len(first) < 2:
        raise UserError(f"reward {name!r} must take (prompts, completions, **columns)")
    return found


def reward(given: Any, where: str = "rewards") -> Reward:
    """One reward from a config: a name, or `{"name": ..., "weight": 1.0}` and its settings.

    `time_limit` stands beside them.

    Raises:
      UserError: nothing of that name, a setting that it does not know or that it lacks.
    """
    if isinstance(given, Reward):
        return given
    values = {"name": given} if isinstance(given, str) else given
    if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
        raise UserError(f"{where} = {given!r}: a name, or a dict with a name, is expected")
    name, weight = values["name"], values.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise UserError(f"{where}: the weight of {name!r} is {weight!r}; a number is expected")
    limit = values.get("time_limit", TIME_LIMIT)
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float)):
        raise UserError(f"{where}: time_limit of {name!r} is {limit!r}; seconds or None expected")
    if limit is not None and limit <= 0:
        raise UserError(f"{where}: time_limit of {name!r} is {limit!r}; it must be above 0")
    function = named(name)
    known = settings_of(function)
    settings = {key: value for key, value in values.items() if key not in _OWN}
    check_keys(settings, [*known, *_OWN], f"{where}: reward {name!r}")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in settings:
            raise UserError(f"{where}: reward {name!r} needs {key!r}")
        if key in settings:
            settings[key] = _inner(settings[key], parameter.annotation, f"{where}.{key}")
    return Reward(name, function, float(weight), settings, limit)


def rewards(given: Sequence[Any], where: str = "rewards") -> tuple[Reward, ...]:
    """Several rewards from a config.

    Raises:
      UserError: as `reward`.
    """
    return tuple(reward(one, f"{where}[{i}]") for i, one in enumerate(given))


def within(one: Reward) -> Iterator[Reward]:
    """A reward, and all that its settings hold."""
    yield one
    for value in one.settings.values():
        some = value.values() if isinstance(value, Mapping) else value
        for inner in some if isinstance(some, Iterable) else (some,):
            if isinstance(inner, Reward):
                yield from within(inner)


def ready(one: Reward) -> None:
    """Checks that a reward, and all that its settings hold, can judge on this machine.

    Raises:
      UserError: a package or a sandbox that it needs is not there, or a setting cannot be.
    """
    for inner in within(one):
        if (check := index.CHECKS.get(inner.name)) is not None:
            check(**inner.settings)


def settings_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """A reward function's settings: its keyword-only arguments."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}


def needs(package: str, module: str, where: str) -> None:
    """Checks that an optional package is installed.

    Args:
      package: its name on PyPI.
      module: what is imported of it.
      where: what needs it, as messages call it.

    Raises:
      UserError: it is not.
    """
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{where} needs {package}: pip install {package}, or 'ptjax[rewards]'")


def _inner(given: Any, annotation: Any, where: str) -> Any:
    """A setting's value; where its annotation says that it holds rewards, those."""
    if given is None:
        return None
    if annotation in (Reward, Reward | None):
        if isinstance(given, Mapping) and "weight" in given:
            raise UserError(f"{where}: no weight is read of one reward inside another")
        return reward(given, where)
    if annotation == Sequence[Reward]:
        if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
            raise UserError(f"{where} = {given!r}: a list of rewards is expected")
        return rewards(given, where)
    if annotation == Mapping[str, Reward]:
        if not isinstance(given, Mapping):
            raise UserError(f"{where} = {given!r}: a dict of name to reward is expected")
        return {key: reward(one, f"{where}[{key!r}]") for key, one in given.items()}
    return given


def _columns(
    function: Callable[..., Any],
) -> tuple[list[inspect.Parameter], bool, tuple[str, ...]]:
    """Parameters that are columns, whether any column is taken, and the names of the first two."""
    parameters = list(inspect.signature(function).parameters.values())
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return plain[2:], takes_all, tuple(p.name for p in plain[:2])
