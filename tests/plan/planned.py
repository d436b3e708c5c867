"""`python -m ptjax.plan` as a command of its own, for devices that are not there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def planned(path: Path | str, out: Path, *words: str) -> dict[str, Any]:
    """What it writes of a config, once it has ended well."""
    done = subprocess.run(
        [sys.executable, "-m", "ptjax.plan", f"--config={path}", f"--out={out}", *words],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((out / "plan.json").read_text())
