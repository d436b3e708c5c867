"""Loading a config: a Python file whose `get_config()` returns an `ml_collections.ConfigDict`."""

import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections.config_dict import ConfigDict

from ptjax.config.fields import leaves, missing, override
from ptjax.errors import UserError, did_you_mean


def load(
    spec: str | os.PathLike[str],
    overrides: Mapping[str, Any] | Sequence[tuple[str, Any]] = (),
    *,
    partial: bool = False,
) -> ConfigDict:
    """Loads `file.py` or `file.py:arg`, applies overrides, resolves references and locks it.

    Args:
      spec: the file, and after a colon the argument of its `get_config`.
      overrides: `{"steps": 10, "data.sources[0].path": "chat.jsonl"}`, or pairs in order; `steps`
        takes the place of the file's `epochs`, and the other way round.
      partial: leave required fields that have no value as None instead of refusing.

    Raises:
      UserError: the file, the field or the value is wrong, or required fields have no value.
    """
    spec = os.fspath(spec)
    config = _get_config(spec)
    if config.is_locked:
        config.unlock()
    pairs = list(overrides.items()) if isinstance(overrides, Mapping) else list(overrides)
    for path, value in pairs:
        override(config, path, value)
    _one_length(config, [path for path, _ in pairs])
    absent = missing(config)
    if absent and not partial:
        flags = " ".join(f"--{path}=..." for path in absent)
        raise UserError(f"{spec}: {len(absent)} required value(s) missing; give {flags}")
    for path in absent:
        _fill(config, path)
    config = config.copy_and_resolve_references()
    config.lock()
    return config


def _one_length(config: ConfigDict, given: Sequence[str]) -> None:
    """A run's length that is given in place of the file's, in the other unit, takes its place."""
    for name, other in (("steps", "epochs"), ("epochs", "steps")):
        if name in given and other not in given and other in config and config[name] is not None:
            config[other] = None


def require(config: ConfigDict, *paths: str) -> None:
    """Raises one UserError that names every one of `paths` whose value is None."""
    values = dict(leaves(config))
    absent = [path for path in paths if values.get(path) is None]
    if absent:
        raise UserError(
            "required value(s) missing; give " + " ".join(f"--config.{p}=..." for p in absent)
        )


def describe(config: ConfigDict) -> str:
    """One line a field: its path as the user would override it, and its value."""
    return "\n".join(f"  --config.{path}={value!r}" for path, value in leaves(config))


def _get_config(spec: str) -> ConfigDict:
    path, colon, arg = spec.partition(":")
    module = _import(path)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise UserError(
            f"{path}: defines no get_config(); it must return an ml_collections.ConfigDict"
        )
    args = (arg,) if colon else ()
    try:
        inspect.signature(get_config).bind(*args)
    except TypeError:
        how = "takes no argument" if colon else f"needs an argument: --config={path}:ARG"
        raise UserError(f"{path}: get_config() {how}") from None
    config = _located(path, lambda: get_config(*args))
    if isinstance(config, Mapping):
        config = ConfigDict(dict(config))
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        raise UserError(f"{path}: get_config() returned {kind}, not an ml_collections.ConfigDict")
    return config


def _import(path: str) -> ModuleType:
    file = Path(path)
    if not file.is_file():
        folder = file.parent
        if not folder.is_dir():
            raise UserError(f"--config={path}: there is no folder {str(folder)!r} in {os.getcwd()}")
        known = [str(folder / other.name) for other in folder.glob("*.py")]
        raise UserError(f"--config={path}: no such file{did_you_mean(path, known)}")
    spec = importlib.util.spec_from_file_location(f"ptjax_config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"--config={path}: not a Python file (it must end in .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    loader = spec.loader
    _located(path, lambda: loader.exec_module(module))
    return module


def _located(path: str, call: Callable[[], Any]) -> Any:
    """Calls into the user's file; what it raises becomes `file:line: Error: message`."""
    try:
        return call()
    except UserError as error:
        place, _, said = str(error).partition(":")  # a recipe may name its file, and its argument
        mine = Path(place).name == Path(path).name
        raise UserError(f"{path}:{said}" if mine else f"{path}: {error}") from error
    except SyntaxError as error:
        text = f": {error.text.strip()}" if error.text else ""
        raise UserError(f"{error.filename or path}:{error.lineno}: {error.msg}{text}") from error
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        mine = [
            f.lineno for f in frames if Path(f.filename) == Path(path) or f.filename.endswith(path)
        ]
        line = f":{mine[-1]}" if mine else ""
        raise UserError(f"{path}{line}: {type(error).__name__}: {error}") from error


def _fill(config: ConfigDict, path: str) -> None:
    *parents, last = path.split(".")[1:]
    holder: Any = config
    for key in parents:
        holder = holder[key]
    del holder[last]
    holder[last] = None
