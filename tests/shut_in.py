"""Whether this machine can shut programs in at all, which is asked of bubblewrap and not of us."""

import subprocess

import pytest

from ptjax.errors import UserError
from ptjax.rewards.sandbox.bubblewrap import binary
from ptjax.rewards.sandbox.proof import prove

_BARE = ("--unshare-user", "--unshare-pid", "--unshare-net", "--ro-bind", "/", "/")


def skip_where_nothing_can_be():
    """Skips where bubblewrap is missing or not allowed to work; else a sandbox has to hold."""
    try:
        bare = subprocess.run([binary(), *_BARE, "true"], capture_output=True, text=True)
    except UserError as error:
        pytest.skip(str(error))
    if bare.returncode:
        pytest.skip(f"bubblewrap does not work here: {bare.stderr.strip()}")
    prove()
