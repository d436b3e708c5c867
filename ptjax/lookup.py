"""Finds what a config names: a row of an index, or the dotted path of a user's own."""

import importlib
from collections.abc import Mapping
from typing import Any

from ptjax.errors import UserError, did_you_mean


def find(name: Any, index: Mapping[str, Any], what: str) -> Any:
    """The row `name` of an index, or what `my_package.my_file.my_function` leads to.

    Args:
      name: a row's name or a dotted path; the folder a command is run in is searched too.
      index: what there is by name.
      what: what is looked for, as messages call it: "method", "reward".

    Raises:
      UserError: no such row, module or attribute, a module that fails as it is imported, or a name
        that is no string.
    """
    if not isinstance(name, str):
        raise UserError(f"{what}: {name!r} is not a string; give a name, or the path of your own")
    if name in index:
        return index[name]
    module, _, attribute = name.rpartition(".")
    if not module:
        raise UserError(f"{what}: unknown {name!r}{did_you_mean(name, index)}")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"{what} {name!r}: {error}") from error
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{what} {name!r}: {module} cannot be imported: {reason}") from error
    if not hasattr(found, attribute):
        near = did_you_mean(attribute, [key for key in vars(found) if not key.startswith("_")])
        hint = near if "did you mean" in near else ""
        raise UserError(f"{what} {name!r}: {module} has no {attribute!r}{hint}")
    return getattr(found, attribute)
