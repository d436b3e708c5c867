"""Types of hyperparameters, as signatures and defaults say."""

from typing import Any

import numpy as np
import pytest

from ptjax.algorithms import METHODS
from ptjax.algorithms.base import Algorithm
from ptjax.algorithms.hparams import keywords, typed
from ptjax.errors import UserError


def annotated(
    *,
    number: float = 1.0,
    count: int,
    flag: bool = False,
    name: str | tuple[str, ...] = "a",
    weights: tuple[float, ...] | None = None,
    anything: Any = None,
): ...


def bare(*, number=1.0, count=1, flag=False, name="a", rest=None, pair=(1, 2)): ...


@pytest.mark.parametrize(
    "given",
    [
        dict(number=1),
        dict(number=np.float32(0.5), count=np.int64(3)),
        dict(name="b"),
        dict(name=("a", "b")),
        dict(name=["a"], weights=[1, 0.5]),
        dict(weights=None),
        dict(anything="x"),
        dict(anything={"a": 1}),
        dict(unknown_here=3),
    ],
)
def test_fits(given):
    assert typed(annotated, given, "config.hparams") == given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(number="0.1a"), "config.hparams.number expects a number, got '0.1a'"),
        (dict(number=True), "config.hparams.number expects a number, got True"),
        (dict(number=None), "config.hparams.number expects a number, got None"),
        (dict(count=1.0), "config.hparams.count expects an int, got 1.0"),
        (dict(flag=1), "config.hparams.flag expects True or False, got 1"),
        (
            dict(name=3),
            "config.hparams.name expects a string, or a tuple, each item a string, got 3",
        ),
        (dict(name=("a", 3)), "config.hparams.name expects a string, or a tuple"),
        (dict(weights=1.0), "config.hparams.weights expects a tuple, each item a number, or None"),
    ],
)
def test_does_not_fit(given, message):
    with pytest.raises(UserError) as error:
        typed(annotated, given, "config.hparams")
    assert str(error.value).startswith(message)


def test_an_int_for_a_float_becomes_one():
    found = typed(annotated, dict(number=1, count=1), "hparams")
    assert (type(found["number"]), type(found["count"])) == (float, int)


def test_without_annotations_the_defaults_say():
    typed(bare, dict(number=2, rest="x", pair=3), "hparams")
    for given in (dict(number="x"), dict(count=1.5), dict(flag=0), dict(name=3)):
        with pytest.raises(UserError, match=f"hparams.{next(iter(given))} expects"):
            typed(bare, given, "hparams")


@pytest.mark.parametrize(
    ("method", "given"),
    [("sft", {"label_smoothing": "x"}), ("sft", {"loss": 3}), ("kto", {"beta": "0.1a"})],
)
def test_methods_refuse_them(method, given):
    (name,) = given
    with pytest.raises(UserError, match=f"config.hparams.{name} expects .*, got "):
        METHODS[method].bind(given, "config.hparams")


@pytest.mark.parametrize("method", METHODS)
def test_every_default_is_of_its_own_type(method):
    algorithm = METHODS[method]
    assert isinstance(algorithm, Algorithm)
    for function in (*(stage.run for stage in algorithm.stages), algorithm.loss):
        typed(function, keywords(function), "defaults")
