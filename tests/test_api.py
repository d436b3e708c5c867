"""`import ptjax`: quick, lazy, and the same names whatever was imported before."""

import subprocess
import sys

import pytest

import ptjax
from ptjax.errors import UserError
from ptjax.export.writing import export
from ptjax.loop import train
from ptjax.train import main
from ptjax.workdir import load

HEAVY = """
import sys, ptjax, ptjax.export.__main__, ptjax.train
print([name for name in ("jax", "transformers", "orbax", "grain") if name in sys.modules])
"""


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_imports_nothing_heavy():
    assert python(HEAVY) == "[]"


def test_names_are_functions_though_modules_have_the_same_names():
    assert main.__module__ == "ptjax.train"
    assert ptjax.train is train
    assert ptjax.export is export
    assert ptjax.load is load
    assert ptjax.UserError is UserError


@pytest.mark.parametrize("name", ptjax.__all__)
def test_every_public_name_is_there(name):
    assert getattr(ptjax, name) is not None
    assert name in dir(ptjax)


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="module 'ptjax' has no attribute 'trian'"):
        getattr(ptjax, "tri" + "an")
