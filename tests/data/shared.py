"""Real data beside the checkout, for tests that use it where it is and say so where it is not."""

import os
from pathlib import Path

import pytest

FOLDER = Path(
    os.environ.get("PTJAX_SHARED_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data"
)


def shared(name: str) -> Path:
    """A file of that folder; skips the test where it is not."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"needs {name} in PTJAX_SHARED_DATA")
    return path
