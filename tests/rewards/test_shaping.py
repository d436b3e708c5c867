import math

import numpy as np
import pytest

from ptjax.errors import UserError
from ptjax.rewards.base import reward
from ptjax.rewards.score import ask, score
from ptjax.rewards.shaping import soft_overlong


def test_soft_overlong_is_equation_13():
    lengths = [1, 80, 81, 90, 100, 101]
    found = soft_overlong([], [""] * 6, lengths, max_tokens=100, cache=20)
    np.testing.assert_allclose(found, [0, 0, -1 / 20, -10 / 20, -1, -1])


def test_cosine_goes_from_its_value_at_0_to_that_at_the_end():
    made = reward(
        {
            "name": "cosine",
            "reward": {"name": "contains", "words": ["yes"]},
            "max_tokens": 100,
            "correct": [2.0, 1.0],
            "wrong": [-10.0, 0.0],
            "exceeded": -5.0,
        }
    )
    texts = ["yes", "yes", "yes", "no", "no", "no", "yes"]
    lengths = [0, 50, 75, 0, 50, 99, 100]
    found = ask([made], [""] * 7, texts, {"completion_tokens": lengths})[0]
    end = -10 * (1 + math.cos(math.pi * 0.99)) / 2
    quarter = 1 + (1 + math.cos(math.pi * 0.75)) / 2
    np.testing.assert_allclose(found, [2, 1.5, quarter, -10, -5, end, -5], atol=1e-12)


def test_cosine_knows_no_more_than_what_says_what_is_right():
    made = reward({"name": "cosine", "reward": {"name": "math", "verify": False}, "max_tokens": 9})
    columns = {"completion_tokens": [1, 1], "answer": ["1", None]}
    found = score([made], ["", ""], [r"\boxed{1}", r"\boxed{1}"], columns)
    assert found.total[0] > 1 and np.isnan(found.total[1]) and not found.failed


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "soft_overlong", "max_tokens": 5, "cache": 6}, "cache=6 is above max_tokens=5"),
        ({"name": "soft_overlong", "max_tokens": 5, "cache": 0}, "cache = 0"),
        ({"name": "cosine", "reward": "format", "max_tokens": 0}, "max_tokens = 0"),
        ({"name": "cosine", "reward": "format", "max_tokens": 9, "wrong": [1.0]}, "two values"),
    ],
)
def test_lengths_that_make_no_sense(given, message):
    with pytest.raises(UserError, match=message):
        ask([reward(given)], [""], [""], {"completion_tokens": [1]})


def test_without_the_number_of_tokens_there_is_no_answer():
    made = reward({"name": "soft_overlong", "max_tokens": 5, "cache": 1})
    with pytest.raises(UserError, match="no column 'completion_tokens'"):
        ask([made], [""], [""], {})
