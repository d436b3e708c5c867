"""Planning for TPUs changes what processes inherit: the tests after these must not be those."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def environment() -> Iterator[None]:
    """The environment as it was, such as jax's cache of programs, once a file is through."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
