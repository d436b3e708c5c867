"""Command lines: `--config=FILE.py:ARG`, `--config.a.b=value` and a command's own flags."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from ml_collections.config_dict import ConfigDict

from ptjax.config.file import describe, load
from ptjax.config.values import NO_VALUE, described
from ptjax.errors import UserError, did_you_mean


class Flag(NamedTuple):
    """A command's own flag, `--name=value`; of type bool it takes no value."""

    name: str
    help: str
    type: Callable[[str], Any] = str
    default: Any = None
    required: bool = False
    positional: bool = False


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if bare := re.fullmatch(r"argument (--\w+).*: expected one argument", message):
            message = f"{bare[1]} has no value; give {bare[1]}=..."
        raise UserError(f"{self.prog}: {message}; see --help")


def parse(
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    flags: Sequence[Flag] = (),
    description: str = "",
    example: str = "",
    config: bool = True,
) -> tuple[ConfigDict, argparse.Namespace]:
    """Reads a command line: the config with its overrides, and the command's own flags.

    `--help` prints the flags and the example, and with `--config=...` also that config's fields.

    Args:
      argv: the arguments without the program's name; `sys.argv[1:]` when None.
      prog: how the command is called, e.g. `python -m ptjax.train`.
      flags: the command's own flags; `--dry_run` may also be written `--dry-run`.
      description: one line for `--help`.
      example: a command line for `--help`, and for the message when `--config` is missing.
      config: whether the command takes a config; without one an empty ConfigDict is returned.

    Returns:
      The config, all references resolved and locked, and the flags' values by name.

    Raises:
      UserError: exit code 2; one line that says what is wrong and, where possible, what was meant.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    argv, overrides = _split_overrides(argv) if config else (argv, [])
    parser = _parser(prog, flags, description, example, config)
    options, unknown = parser.parse_known_args(argv)
    if options.help:
        print(parser.format_help().rstrip())
        if config and options.config:
            print(f"\nfields of {options.config}:\n{describe(load(options.config, partial=True))}")
        sys.exit(0)
    if unknown:
        flag = unknown[0].split("=")[0]
        if not flag.startswith("-"):
            raise UserError(
                f"{prog}: nothing is expected where {unknown[0]!r} stands; flags are "
                "--name=value, and what has spaces needs quotes"
            )
        known = [f"--{f.name}" for f in flags if not f.positional] + ["--config"] * config
        raise UserError(f"{prog}: unknown argument {flag!r}{did_you_mean(flag, known)}")
    for flag in flags:
        if flag.required and getattr(options, flag.name) in (None, ""):
            shown = flag.name.upper() if flag.positional else f"--{flag.name}=..."
            raise UserError(f"{prog}: missing {shown} ({flag.help})")
    if not config:
        return ConfigDict(), options
    if options.config is None:
        hint = f"; for example: {example}" if example else ""
        raise UserError(f"{prog}: missing --config=FILE.py{hint}")
    return load(options.config, overrides), options


def _parser(
    prog: str, flags: Sequence[Flag], description: str, example: str, config: bool
) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog,
        description=description,
        epilog=f"example:\n  {example}" if example else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    if config:
        parser.add_argument(
            "--config",
            metavar="FILE.py[:ARG]",
            help="the config; --config.a.b=value sets a field, --config=FILE.py --help lists them",
        )
    for flag in flags:
        if flag.positional:
            parser.add_argument(
                flag.name, nargs="?", type=_reads(flag), default=flag.default, help=flag.help
            )
            continue
        spellings = dict.fromkeys([f"--{flag.name}", f"--{flag.name.replace('_', '-')}"])
        if flag.type is bool:
            parser.add_argument(*spellings, dest=flag.name, action="store_true", help=flag.help)
            continue
        parser.add_argument(
            *spellings,
            dest=flag.name,
            type=_reads(flag),
            default=flag.default,
            metavar=flag.name.rpartition("_")[2].upper(),
            help=flag.help,
        )
    parser.add_argument("--help", "-h", action="store_true", help="show this and exit")
    return parser


def _reads(flag: Flag) -> Callable[[str], Any]:
    """What makes a flag's value of its text; a wrong one is told as that of a config's field is."""

    def read(text: str) -> Any:
        try:
            return flag.type(text)
        except ValueError:
            where = flag.name.upper() if flag.positional else f"--{flag.name}"
            raise UserError(f"{where} expects {described(flag.type)}, got {text!r}") from None

    return read


def _split_overrides(argv: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Parts `--config.a=v`, `--config.a v`, `--config.flag` and `--noconfig.flag` from the rest."""
    rest: list[str] = []
    overrides: list[tuple[str, str]] = []
    words = iter(range(len(argv)))
    for i in words:
        word = argv[i]
        if word.startswith("--noconfig."):
            overrides.append((word.removeprefix("--noconfig."), "false"))
        elif not word.startswith("--config."):
            rest.append(word)
        elif "=" in word:
            path, _, value = word.removeprefix("--config.").partition("=")
            overrides.append((path, value))
        elif i + 1 < len(argv) and not argv[i + 1].startswith("--"):
            overrides.append((word.removeprefix("--config."), argv[next(words)]))
        else:
            overrides.append((word.removeprefix("--config."), NO_VALUE))
    return rest, overrides
