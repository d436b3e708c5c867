"""Eight virtual devices for every test; single-device tests use the first.

Compiled programs are kept for the length of the session: whole runs compile the same few again and
again, in this process and in those it starts.
"""

import gc
import os
import tempfile
from collections.abc import Iterator

import pytest

from tests import xla

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla.flags(8)}".strip()

_programs = tempfile.TemporaryDirectory(prefix="ptjax-tests-xla-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _programs.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Most programs here run for milliseconds: compiled without LLVM's slow passes, in half the time.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


gc.set_threshold(50_000, 20, 20)  # traced programs are millions of objects: looked over less often


LONG = (
    "test_judged_invariances",
    "test_resume",
    "test_runs",
    "test_notebook",
    "test_updates",
    "test_parity",
    "test_reference",
    "test_configs",
    "test_train",
    "test_processes",
    "test_rollout_processes",
    "test_mesh",
    "test_make",
    "test_worked_example",
)
"""Files that take long: they begin first, so that no process is left alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts them in front; the order is otherwise that of the files."""
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(scope="module")
def optimized() -> Iterator[None]:
    """All of the compiler's passes, for programs that run longer than they compile."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
