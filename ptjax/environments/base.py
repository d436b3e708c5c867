"""What an environment is, how a config names one, and how one is asked.

    class Guess:
        def __init__(self, *, most: int = 9): ...
        def reset(self, row): self.secret = row["secret"]
        def step(self, text): return Turn("higher") if ... else Turn(None, reward=1.0)

One is made for each answer. Keyword-only arguments of its class are its settings. Its prompt is the
row's; what it says between the policy's turns is read by the policy and never trained.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from ptjax import environments as index
from ptjax.errors import UserError, check_keys
from ptjax.lookup import find
from ptjax.rewards.base import Failed

TIME_LIMIT = 120.0
"""Seconds that a turn of an environment may take, where a config gives no other."""

_OWN = ("name", "time_limit")


class Turn(NamedTuple):
    """What an environment says to a turn of the policy."""

    said: str | None
    """None ends the conversation."""
    reward: float = 0.0
    """For the policy's turn; those of a conversation are added up."""
    role: str = "tool"
    """Of what is said, in the chat template."""


@runtime_checkable
class Environment(Protocol):
    """Answers one conversation."""

    def reset(self, row: Mapping[str, Any]) -> None:
        """Begins.

        Args:
          row: the prompt's row: its columns, `messages` and `given`.
        """
        ...

    def step(self, text: str) -> Turn:
        """Answers a turn.

        Args:
          text: what the policy said in it, without the token that ended it.
        """
        ...


@dataclass(frozen=True)
class Make:
    """Makes an environment, one for each answer.

    Attributes:
      made: its class.
      settings: its keyword-only arguments.
      time_limit: seconds that its beginning and each of its turns may take, after which the answer
        has no reward; None: any, and they run on the thread that asks.
    """

    made: Callable[..., Environment]
    settings: Mapping[str, Any] = field(default_factory=dict)
    time_limit: float | None = TIME_LIMIT

    def __call__(self) -> Environment:
        """A new one."""
        return self.made(**self.settings)


def begun(make: Callable[[], Environment], row: Mapping[str, Any]) -> Environment:
    """A new environment that has begun."""
    environment = make()
    environment.reset(row)
    return environment


def answer(environment: Environment, text: str) -> Turn:
    """What an environment says to a turn, its reward a finite number.

    What no tokenizer takes, half of a surrogate pair, becomes a question mark.

    Raises:
      Failed: it says something else than a turn.
    """
    turn = environment.step(text)
    if not isinstance(turn, Turn):
        raise Failed(f"step() returned {type(turn).__name__}, not a Turn")
    if not isinstance(turn.said, str | None):
        raise Failed(f"it said {type(turn.said).__name__}, not a text or None")
    if not isinstance(turn.role, str):
        raise Failed(f"its role is {turn.role!r}, not a text")
    try:
        reward = float(turn.reward)
    except (TypeError, ValueError):
        reward = math.nan
    if not math.isfinite(reward):
        raise Failed(f"its reward is {turn.reward!r}, not a number")
    said = None if turn.said is None else turn.said.encode(errors="replace").decode()
    return turn._replace(said=said, reward=reward)


def environment(given: Any, where: str = "config.rollout.environment") -> Make:
    """What makes the environments that a config names.

    Args:
      given: a name, or `{"name": ..., "time_limit": 120.0}` with settings.
      where: for messages.

    Raises:
      UserError: nothing of that name, a setting that it does not know or lacks or refuses.
    """
    values = {"name": given} if isinstance(given, str) else given
    if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
        raise UserError(f"{where} = {given!r}: a name, or a dict with a name, is expected")
    name, limit = values["name"], values.get("time_limit", TIME_LIMIT)
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float)):
        raise UserError(f"{where}: time_limit = {limit!r}; seconds or None are expected")
    if limit is not None and not limit > 0:
        raise UserError(f"{where}: time_limit = {limit!r}; it must be above 0")
    made = find(name, index.ENVIRONMENTS, "environment")
    for method in ("reset", "step"):
        if not callable(getattr(made, method, None)):
            raise UserError(f"{where}: environment {name!r} has no {method}()")
    parameters = inspect.signature(made).parameters.values()
    known = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    settings = {key: value for key, value in values.items() if key not in _OWN}
    check_keys(settings, [*known, *_OWN], f"{where}: environment {name!r}")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in settings:
            raise UserError(f"{where}: environment {name!r} needs {key!r}")
    make = Make(made, settings, limit)
    make()
    return make
