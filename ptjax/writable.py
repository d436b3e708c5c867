"""Whether something can be written, asked before anything heavy is done for it."""

import os
import tempfile
from pathlib import Path

from ptjax.errors import UserError


def check_folder(folder: str | os.PathLike[str], what: str) -> None:
    """Refuses a folder that cannot be made, or written in; leaves nothing behind.

    Args:
      folder: on a disk, there already or not.
      what: what it is, as the message calls it: "workdir".

    Raises:
      UserError: a file stands there or on the way, or nothing can be written.
    """
    whole = place = Path(os.path.abspath(os.path.expanduser(folder)))
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        where = "" if place == whole else f"{place} "
        raise UserError(f"{folder}: {where}is not a folder; give another {what}")
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise UserError(
            f"{folder}: nothing can be written in {place} ({error.strerror or error}); mend that, "
            f"or give another {what}"
        ) from error
