import math

import numpy as np
import pytest

from ptjax.rewards.choose import best_against


def chosen(answers, scores, against="worst", margin=0.0, seed=0):
    draw = np.random.default_rng(seed)
    return best_against(answers, scores, against=against, margin=margin, draw=draw)


def test_the_best_stands_against_the_worst():
    assert chosen("abcd", [1.0, 3.0, 0.5, 2.0]) == (1, 2)


def test_an_answer_without_a_score_is_never_in_a_pair():
    assert chosen("abc", [1.0, math.nan, 2.0]) == (2, 0)
    assert chosen("abc", [1.0, math.nan, math.nan]) == "one answer only"
    assert chosen("ab", [math.nan] * 2) == "no answer with a score"
    assert chosen("", []) == "no answer with a score"


def test_alike_answers_count_once():
    assert chosen("aab", [1.0, 1.0, 0.0]) == (0, 2)
    assert chosen("aa", [1.0, 1.0]) == "one answer only"


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_equal_scores_are_no_preference(margin):
    assert chosen("ab", [1.0, 1.0], margin=margin) == "below the margin"


def test_the_margin_is_enough_when_it_is_reached():
    assert chosen("ab", [1.0, 0.5], margin=0.5) == (0, 1)
    assert chosen("ab", [1.0, 0.75], margin=0.5) == "below the margin"


def test_at_random_any_other_answer_is_taken_as_often_as_the_next():
    found = [chosen("abcd", [1.0, 3.0, 0.5, 2.0], "random", seed=seed) for seed in range(300)]
    assert {good for good, _ in found} == {1}
    counts = [sum(bad == i for _, bad in found) for i in (0, 2, 3)]
    assert sum(counts) == 300 and min(counts) > 70
    assert found == [chosen("abcd", [1.0, 3.0, 0.5, 2.0], "random", seed=s) for s in range(300)]
