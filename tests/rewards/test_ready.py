"""What a reward needs of the machine is missed before a run, wherever the reward stands."""

import pytest

from ptjax.errors import UserError
from ptjax.rewards.base import ready, reward

NEEDS = {
    "math": ("math", "math-verify"),
    "ifeval": ("ifeval", "py3langid"),
    "detector": ({"name": "language", "by": "detector"}, "py3langid"),
    "schema": ("json_schema", "jsonschema"),
    "gym": ("reasoning_gym", "reasoning-gym"),
    "inside": ({"name": "by_row", "rewards": {"sums": "math"}}, "math-verify"),
}


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize("case", NEEDS)
def test_a_package_that_is_not_installed(case):
    given, package = NEEDS[case]
    with pytest.raises(UserError, match=f"needs {package}: pip install"):
        ready(reward(given))


@pytest.mark.usefixtures("nothing_installed")
def test_nothing_is_asked_for_that_is_not_used():
    for given in ("language", {"name": "math", "verify": False}, "format"):
        ready(reward(given))


def test_a_language_that_is_not_known():
    with pytest.raises(UserError, match="unknown code 'english'"):
        ready(reward({"name": "language", "code": "english"}))
