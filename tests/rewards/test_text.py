import pytest

from ptjax.errors import UserError
from ptjax.rewards.text import contains, length, regex, repetition


def test_length_grows_up_to_its_target():
    assert length([], ["", "one", "one two", "a b  c\nd", "a b c d e"], target=4) == [
        0.0,
        0.25,
        0.5,
        1.0,
        1.0,
    ]


def test_contains_counts_whole_words_there_and_not_there():
    texts = ["I am Pip.", "I lay pipes.", "Pip, not SmolLM", "pip of Hugging Face"]
    assert contains([], texts, words=["Pip"]) == [1, 0, 1, 1]
    assert contains([], texts, words="Pip", ignore_case=False) == [1, 0, 1, 0]
    assert contains([], texts, words=["Pip"], without=["SmolLM", "Hugging Face"]) == [
        1,
        2 / 3,
        2 / 3,
        2 / 3,
    ]
    assert contains([], ["C++ (a language)"], words=["C++", "(a"]) == [1]


def test_regex_matches_anywhere_and_in_its_own_case():
    assert regex([], ["Ahoy! Hi", "Hi. Ahoy!"], patterns=[r"\AAhoy", "Hi"]) == [1, 0.5]
    assert regex([], ["a1", "b"], without=r"\d") == [0, 1]
    assert regex([], ["AHOY"], patterns=["ahoy"]) == [0]


def test_repetition_is_the_share_of_ngrams_that_came_before():
    looped = " ".join(["the same thing again"] * 10)
    assert repetition([], ["no word of this text comes twice", "a b", ""]) == [0, 0, 0]
    assert repetition([], [looped], n=3) == [4 / 38 - 1]
    assert repetition([], ["Yes, yes. YES!"], n=1) == [1 / 3 - 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: length([], ["a"], target=0), "target = 0"),
        (lambda: length([], ["a"], target=True), "target = True"),
        (lambda: repetition([], ["a"], n=0), "n = 0"),
        (lambda: contains([], ["a"]), "nothing to look for"),
        (lambda: contains([], ["a"], words=["a", ""]), "words holds ''"),
        (lambda: regex([], ["a"], patterns=["("]), r"'\(' is not a regex"),
    ],
)
def test_settings_that_make_no_sense_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()
