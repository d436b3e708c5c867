"""The argument of a recipe that serves many methods: which of its rows, full or with adapters."""

from collections.abc import Iterable

from ptjax.errors import UserError, did_you_mean

_LORA = "lora"


def choose(arg: str, choices: Iterable[str], file: str) -> tuple[str, bool]:
    """A recipe's choice and whether adapters are trained, from `ipo`, `lora` or `ipo,lora`.

    Args:
      arg: what stands behind the colon; where it names no choice, the first is meant.
      choices: the names that the recipe knows.
      file: the recipe's, for the message.

    Raises:
      UserError: a name that it does not know, or more than one.
    """
    known = list(choices)
    names = [name for name in arg.split(",") if name and name != _LORA]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, [*known, _LORA])
            raise UserError(f"{file}:{arg}: the argument is {_form(known)}{hint}")
    if len(names) > 1:
        raise UserError(f"{file}:{arg}: the argument is one name, not {' and '.join(names)}")
    return (names or known)[0], _LORA in arg.split(",")


def _form(known: list[str]) -> str:
    """What may stand behind the colon."""
    return f"{known[0]} or lora" if len(known) == 1 else "a name, ',lora' behind it or not"
