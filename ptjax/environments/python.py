"""A Python interpreter in the sandbox, as a tool."""

from ptjax.rewards.base import Failed

SECONDS = 5.0
"""That a program may take, on the clock."""


def python(code: str) -> str:
    """What a program prints, in a sandbox without network: docs/code_sandbox.md.

    Args:
      code: the program; nothing of it outlives the call.

    Returns:
      Its standard output, or the last line of its error.

    Raises:
      UserError: the sandbox is not there, or does not hold.
      Failed: it did not start this time.
      RuntimeError: the program passed a limit, or ended in an error.
    """
    from ptjax.rewards.sandbox.limits import Limits
    from ptjax.rewards.sandbox.proof import prove
    from ptjax.rewards.sandbox.session import SandboxError, Session

    prove()
    try:
        with Session(Limits(wall_seconds=SECONDS)) as session:
            ended = session.run(code, "")
    except SandboxError as error:
        raise Failed(f"code sandbox: {error}") from error
    if ended.over != "exit":
        raise RuntimeError(f"the program was stopped: {ended.over}")
    if ended.status:
        raise RuntimeError(ended.err.strip().rpartition("\n")[2] or f"exit status {ended.status}")
    return ended.out.rstrip("\n")
