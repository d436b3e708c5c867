import numpy as np
import pytest

from ptjax.errors import UserError
from ptjax.rewards.base import Reward, reward
from ptjax.rewards.score import ask, score

TEXTS = ["Pip, yes", "Pip", "no", "Pip yes"]
PROMPTS = [""] * 4


def asked(given, **columns):
    return ask([reward(given)], PROMPTS, TEXTS, columns)[0]


def test_a_rubric_is_the_weighted_share_of_its_criteria():
    given = {
        "name": "rubric",
        "rewards": [
            {"name": "contains", "words": ["Pip"], "weight": 3.0},
            {"name": "contains", "words": ["yes"]},
            {"name": "contains", "words": ["no"], "weight": -2.0},
        ],
    }
    assert asked(given) == [1, 0.75, -0.5, 1]


def test_a_rubric_leaves_out_who_abstains_and_is_missing_where_one_fails():
    def some(prompts, completions):
        return [None, 0.0, float("nan"), None]

    parts = (
        Reward(
            "contains", reward({"name": "contains", "words": "Pip"}).function, 1.0, {"words": "Pip"}
        ),
        Reward("some", some, 3.0),
    )
    made = Reward(
        "rubric", reward({"name": "rubric", "rewards": []}).function, 1.0, {"rewards": parts}
    )
    found = score([made], PROMPTS, TEXTS, {})
    np.testing.assert_allclose(found.total, [1, 0.25, np.nan, 1])
    assert found.failed == {"rubric: some: returned NaN or infinity": 1}


def says_yes(prompts, completions, criterion, row):
    return [
        float(word in text) + number
        for text, word, number in zip(completions, criterion, row, strict=True)
    ]


def test_a_rows_own_rubric_is_asked_criterion_by_criterion():
    made = reward({"name": "rubric", "rewards": []})
    one = Reward("says_yes", says_yes)
    given = Reward("rubric", made.function, 1.0, {"reward": one})
    own = [["Pip", {"criterion": "yes", "weight": 3.0}], [{"criterion": "yes"}], None, []]
    found = ask([given], PROMPTS, TEXTS, {"rubric": own, "row": [0, 0, 0, 0]})[0]
    assert found == [1, 0, None, None]
    weightless = [[{"criterion": "Pip", "weight": 0.0}, "yes"], ["yes"], None, None]
    found = ask([given], PROMPTS, TEXTS, {"rubric": weightless, "row": [0, 0, 0, 0]})[0]
    assert found == [1, 0, None, None]
    with pytest.raises(UserError, match="give 'rewards', or the 'reward'"):
        asked({"name": "rubric"})


@pytest.mark.parametrize(
    ("own", "found"),
    [
        ("Pip", 1),
        ("Pip, no", 0),
        ('["Pip", {"criterion": "never", "weight": 3}]', 0.25),
        ({"criterion": "yes"}, 1),
        (" ", "criterion ' ' is no text"),
        ("[Pip]", "rubric is no JSON"),
        (3, "rubric 3 is neither text nor a list"),
        ([{"weight": 2}], "criterion None is no text"),
        (["Pip", {"criterion": "yes", "weight": "much"}], "weight 'much' of criterion 'yes' is no"),
    ],
    ids=str,
)
def test_a_rubric_may_be_text_and_one_that_makes_no_sense_is_that_rows_alone(own, found):
    made = reward({"name": "rubric", "rewards": []})
    given = Reward("rubric", made.function, 1.0, {"reward": Reward("says_yes", says_yes)})
    said = ask([given], PROMPTS, TEXTS, {"rubric": [own, ["no"]] * 2, "row": [0] * 4})[0]
    assert said[1::2] == [0, 0]
    assert said[0].startswith(found) if isinstance(found, str) else said[0] == found


BY_ROW = {
    "name": "by_row",
    "rewards": {
        "math": {"name": "math", "verify": False},
        "words": {"name": "contains", "words": ["yes"], "weight": 2.0},
    },
    "may_set": {"words": ["words"]},
}


def test_each_row_names_its_scorer_among_those_of_the_config():
    found = asked(
        BY_ROW,
        scorer=["words", {"name": "words", "words": ["Pip"]}, None, '{"name": "math"}'],
        answer=[None, None, None, "4"],
    )
    assert found == [2, 2, None, 0]


@pytest.mark.parametrize(
    ("scorer", "reason"),
    [
        ("os.system", "scorer 'os.system' is not allowed"),
        ("contains", "scorer 'contains' is not allowed; known: math, words"),
        ({"name": "words", "ignore_case": False}, "scorer 'words' may not set 'ignore_case'"),
        ({"name": "math", "seconds": 1e9}, "scorer 'math' may not set 'seconds'"),
        ({"name": "words", "weight": 100}, "scorer 'words' may not set 'weight'"),
        ({"name": "words", "words": [""]}, "words: reward contains: words holds ''"),
        ("{", "scorer is no JSON"),
        (3, "scorer 3 is not allowed"),
    ],
)
def test_data_choose_nothing_that_the_config_does_not_allow(scorer, reason):
    found = asked(BY_ROW, scorer=["words", scorer, None, None], answer=[None] * 4)
    assert found[0] == 2 and reason in found[1] and found[2:] == [None, None]


def test_a_row_without_what_its_scorer_reads_is_missing():
    given = {
        "name": "by_row",
        "rewards": {"gym": "reasoning_gym", "words": BY_ROW["rewards"]["words"]},
    }
    found = asked(given, scorer=["words", "gym", None, None])
    assert found[0] == 2 and found[1].startswith("gym: no column 'task'")
    found = asked(BY_ROW, scorer=["words", "math", None, None])
    assert found[0] == 2 and found[1].startswith("math: reward math: no column 'answer'")


def test_mistakes_inside_are_found_as_the_config_is_read():
    for given, message in [
        ({"name": "by_row", "rewards": {"a": "mth"}}, r"unknown 'mth'; did you mean 'math'"),
        ({"name": "by_row", "rewards": ["math"]}, "a dict of name to reward is expected"),
        (
            {"name": "rubric", "reward": {"name": "format", "weight": 2.0}},
            "rewards.reward: no weight is read",
        ),
        ({"name": "rubric", "rewards": "math"}, "a list of rewards is expected"),
        (
            {"name": "rubric", "rewards": [{"name": "length", "taget": 1}]},
            r"rewards.rewards\[0\]: .*unknown key 'taget'",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            reward(given)
    for name, message in (("maths", "did you mean 'math'"), ("words", "'word'; did you mean")):
        with pytest.raises(UserError, match=message):
            asked({**BY_ROW, "may_set": {name: ["word"]}}, scorer=[None] * 4)
