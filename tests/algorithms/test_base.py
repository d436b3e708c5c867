"""Methods by row or dotted path, hyperparameters from signatures."""

import sys

import pytest

from ptjax.algorithms import METHODS
from ptjax.algorithms.base import Algorithm, named
from ptjax.errors import UserError
from ptjax.stages.base import Stage
from ptjax.types import Mean


def loss(outputs, batch, *, strength, power=2.0):
    return Mean.of(strength * outputs.logps**power, batch["mask"]), {}


def test_hyperparameters_are_the_signatures():
    bound = Algorithm(loss).bind(dict(strength=3.0), "hparams")
    assert dict(bound.values) == dict(strength=3.0, power=2.0)
    assert bound.needs == ("logps",)
    assert bound == Algorithm(loss).bind(dict(strength=3.0), "hparams")
    assert hash(bound) == hash(Algorithm(loss).bind(dict(strength=3.0), "hparams"))


def test_a_required_one_must_be_given():
    with pytest.raises(UserError, match="config.hparams: 'strength' has no default and must be"):
        Algorithm(loss).bind({}, "config.hparams")


def test_what_decides_whether_a_stage_is_wanted_is_one_too():
    def run(ctx, batch, carry, *, size=3):
        return batch, carry

    stage = Stage("late", run, wanted=lambda *, size, strength, times=1: size * times > 5)
    algorithm = Algorithm(loss, (stage,))
    bound = algorithm.bind(dict(strength=1.0), "hparams")
    assert dict(bound.values) == dict(size=3, times=1, strength=1.0, power=2.0)
    assert bound.stages == ()
    assert algorithm.bind(dict(strength=1.0, times=2), "hparams").stages == (stage,)
    with pytest.raises(UserError, match="'strength' has no default"):
        algorithm.bind(dict(times=2), "hparams")


def test_an_unknown_one_is_refused():
    with pytest.raises(UserError, match="unknown key 'powr'; did you mean 'power'"):
        Algorithm(loss).bind(dict(strength=1.0, powr=1.0), "hparams")


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A file that the package knows nothing of."""
    text = """
from ptjax.algorithms.base import Algorithm
from ptjax.types import Mean

def twice(outputs, batch):
    return Mean.of(-2 * outputs.logps, batch["mask"]), {}

TWICE = Algorithm(twice, needs=("logps", "entropy"))
NUMBER = 3
"""
    (tmp_path / "my_losses.py").write_text(text)
    (tmp_path / "my_broken.py").write_text("import nowhere_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("my_losses", "my_broken"):
        sys.modules.pop(name, None)


def test_a_row_or_a_dotted_path(outside):
    assert named("sft", METHODS) is METHODS["sft"]
    assert named("my_losses.twice", METHODS).needs == ("logps",)
    assert named("my_losses.TWICE", METHODS).needs == ("logps", "entropy")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sftt", "method: unknown 'sftt'; did you mean 'sft'"),
        ("my_loses.twice", "No module named 'my_loses'"),
        ("my_losses.thrice", "my_losses has no 'thrice'"),
        ("my_losses.NUMBER", "neither an Algorithm nor a loss function"),
        (loss, "method: <function loss at .*> is not a string; give a name, or the path of"),
        ("my_broken.loss", "No module named 'nowhere_at_all'"),
    ],
)
def test_a_name_that_leads_nowhere(outside, name, message):
    with pytest.raises(UserError, match=message):
        named(name, METHODS)
