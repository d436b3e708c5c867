"""`python -m ptjax.checkpoint verify DIR`: reads every byte of a run's checkpoints."""

import sys

from ptjax.checkpoint import steps
from ptjax.checkpoint.manifest import BadStep
from ptjax.config import Flag, parse
from ptjax.errors import UserError, did_you_mean, run

_VERIFY = "verify"
_PROG = "python -m ptjax.checkpoint"
_HELP = """Reads every byte of a run's checkpoints, and prints one line a step. Exit code 0: the
newest step verifies. 1: it does not, but an older one does. 2: there is no step. 3: no step
verifies."""
_DIR = "a workdir, or its checkpoints folder"
FLAGS = (
    Flag("command", _VERIFY, positional=True, required=True),
    Flag("dir", _DIR, positional=True),
)


def verify(workdir: str) -> int:
    """Prints the table of a workdir's steps, newest first, and returns the exit code."""
    root = steps.root_of(workdir)
    if not root.exists() and steps.scan(root.parent):
        root = root.parent
    found = steps.scan(root)
    if all(step.kind == "debris" for step in found):
        raise UserError(f"no checkpoint in {root}")
    verdicts: list[bool] = []
    rows = [("step", "state", "files", "bytes", "saved", "")]
    for step in reversed(found):
        state, reason = step.kind, step.reason
        if step.kind in ("committed", "bad"):
            state, reason = _verdict(step)
            verdicts.append(state == "ok")
        files, size, saved = "", "", ""
        if step.manifest is not None:
            files, size = str(len(step.manifest.files)), f"{step.manifest.size:,}"
            saved = step.manifest.created
        rows.append((str(step.step), state, files, size, saved, reason))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        print(
            "  ".join([*(c.rjust(w) for c, w in zip(row, widths, strict=False)), row[5]]).rstrip()
        )
    return 3 if not any(verdicts) else 0 if verdicts[0] else 1


def _verdict(step: steps.Step) -> tuple[str, str]:
    try:
        steps.verify(step)
    except BadStep as error:
        return "bad", str(error)
    return "ok", ""


def main() -> None:
    """Parses the command line."""
    example = f"{_PROG} {_VERIFY} runs/quickstart"
    _, options = parse(prog=_PROG, flags=FLAGS, description=_HELP, example=example, config=False)
    if options.command != _VERIFY:
        hint = did_you_mean(options.command, [_VERIFY])
        raise UserError(f"{_PROG}: unknown command {options.command!r}{hint}")
    if not options.dir:
        raise UserError(f"{_PROG}: missing DIR ({_DIR})")
    code = verify(options.dir)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    run(main)
