"""What an environment is, and how a config names one.

    class Guess:
        def __init__(self, *, most: int = 9): ...
        def reset(self, row): self.secret = row["secret"]
        def step(self, text): return Turn("higher") if ... else Turn(None, reward=1.0)

One is made for each answer. Keyword-only arguments of its class are its settings. Its prompt is the
row's; what it says between the policy's turns is read by the policy and never trained.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from ptjax import environments as index
from ptjax.errors import UserError, check_keys
from ptjax.lookup import find


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


Make = Callable[[], Environment]


def environment(given: Any, where: str = "config.rollout.environment") -> Make:
    """What makes the environments that a config names.

    Args:
      given: a name, or `{"name": ...}` with settings.
      where: for messages.

    Raises:
      UserError: nothing of that name, a setting that it does not know or lacks or refuses.
    """
    values = {"name": given} if isinstance(given, str) else given
    if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
        raise UserError(f"{where} = {given!r}: a name, or a dict with a name, is expected")
    name = values["name"]
    made = find(name, index.ENVIRONMENTS, "environment")
    for method in ("reset", "step"):
        if not callable(getattr(made, method, None)):
            raise UserError(f"{where}: environment {name!r} has no {method}()")
    parameters = inspect.signature(made).parameters.values()
    known = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    settings = {key: value for key, value in values.items() if key != "name"}
    check_keys(settings, known, f"{where}: environment {name!r}")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in settings:
            raise UserError(f"{where}: environment {name!r} needs {key!r}")
    made(**settings)
    return lambda: made(**settings)
