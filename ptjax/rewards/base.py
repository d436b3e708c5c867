"""What a reward is, how a config names one, and how several become one score.

A reward is a plain function of texts, or an `async` one:

    def polite(prompts, completions, *, word="please", **columns):
        return [float(word in completion) for completion in completions]

Keyword-only arguments are its settings. Other arguments after the first two are columns of the
rows, each a list; `**columns` takes all there are. It returns a number for each completion, or None
where it abstains.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ptjax.errors import UserError, check_keys, did_you_mean
from ptjax.lookup import find
from ptjax.rewards import REWARDS

_OWN = ("name", "weight")


@dataclass(frozen=True)
class Reward:
    """A reward function with its settings fixed.

    Attributes:
      name: a row of `REWARDS` or a dotted path.
      function: `(prompts, completions, **columns) -> list[float | None]`, plain or async.
      weight: what its values are multiplied by in a sum of several.
      settings: its keyword-only arguments.
    """

    name: str
    function: Callable[..., Any]
    weight: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)

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
        asked |= {*columns} - {*_settings(function), *first}
    return {name: column for name, column in columns.items() if name in asked}


def named(name: str) -> Callable[..., Any]:
    """A reward function by its row in `REWARDS`, or by dotted path.

    Raises:
      UserError: no such row, module or attribute; not a function of prompts and completions.
    """
    found = find(name, REWARDS, "reward")
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
    function = named(name)
    known = _settings(function)
    settings = {key: value for key, value in values.items() if key not in _OWN}
    check_keys(settings, [*known, *_OWN], f"{where}: reward {name!r}")
    for key, default in known.items():
        if default is inspect.Parameter.empty and key not in settings:
            raise UserError(f"{where}: reward {name!r} needs {key!r}")
    return Reward(name, function, float(weight), settings)


def rewards(given: Sequence[Any], where: str = "rewards") -> tuple[Reward, ...]:
    """Several rewards from a config.

    Raises:
      UserError: as `reward`.
    """
    return tuple(reward(one, f"{where}[{i}]") for i, one in enumerate(given))


def _settings(function: Callable[..., Any]) -> dict[str, Any]:
    """Keyword-only arguments and their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _columns(
    function: Callable[..., Any],
) -> tuple[list[inspect.Parameter], bool, tuple[str, ...]]:
    """Parameters that are columns, whether any column is taken, and the names of the first two."""
    parameters = list(inspect.signature(function).parameters.values())
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return plain[2:], takes_all, tuple(p.name for p in plain[:2])
