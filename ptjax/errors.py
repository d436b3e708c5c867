"""Mistakes a user can mend: one line that says what, where and what to do."""

import difflib
import sys
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, NoReturn


class UserError(Exception):
    """A mistake in the user's input. Its message is one line; commands print it and exit.

    Attributes:
      exit_code: the process's exit status; 2 for bad input, 3 for "no checkpoint verifies".
    """

    def __init__(self, message: str, *, exit_code: int = 2):
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code


INTERRUPTED = UserError("interrupted", exit_code=130)


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` for the closest option, else the list of all options."""
    options = sorted(options)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(options)}" if options else ""


def check_keys(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raises UserError for the first key of `given` that is not in `known`."""
    known = list(known)
    for key in given:
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}{did_you_mean(key, known)}")


def check_values(
    given: Mapping[str, Any], wrong: Mapping[str, tuple[str, bool]], prefix: str
) -> None:
    """Raises UserError for the first setting that is not what it must be.

    Args:
      given: settings by name.
      wrong: name -> (what it must be, whether it is not).
      prefix: stands before the name in the message.
    """
    for name, (wanted, is_wrong) in wrong.items():
        if is_wrong:
            raise UserError(f"{prefix}{name} = {given[name]!r}: it must be {wanted}")


def exit_with(error: UserError) -> NoReturn:
    """Prints the error's line to standard error and ends the process with its code."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)


def until_run(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Takes the place of `sys.excepthook` while python imports what stands before `run`."""
    if issubclass(kind, KeyboardInterrupt):
        exit_with(INTERRUPTED)
    sys.__excepthook__(kind, error, trace)


def in_one_line(error: BaseException) -> UserError | None:
    """What a command says of an error; None where a traceback says more.

    What the system says of a file is told as a mistake, and so is Ctrl-C.
    """
    if isinstance(error, UserError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, OSError) and error.filename is not None:
        return UserError(f"{error.filename}: {error.strerror or error}")
    return None


def run(main: Callable[[], None]) -> None:
    """Runs a command's main; what has a line (`in_one_line`) becomes one and an exit code."""
    try:
        main()
    except (Exception, KeyboardInterrupt) as error:
        line = in_one_line(error)
        if line is None:
            raise
        exit_with(line)
