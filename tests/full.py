"""What the suite leaves out for want of minutes: `PTJAX_FULL=1` runs it."""

import os

import pytest

FULL = os.environ.get("PTJAX_FULL", "") not in ("", "0")
only_in_full = pytest.mark.skipif(not FULL, reason="PTJAX_FULL=1 runs it")
