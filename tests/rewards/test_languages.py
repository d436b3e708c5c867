import pytest

from ptjax.errors import UserError
from ptjax.rewards.base import Failed
from ptjax.rewards.languages import language

TEXTS = [
    "Good morning!",
    "Доброе утро",
    "morning это утро",
    "早上好 ok",
    "こんにちは世界",
    "12 + 3",
]


def test_the_share_of_letters_in_a_languages_scripts():
    assert language([], TEXTS) == [1, 0, 7 / 14, 2 / 5, 0, None]
    assert language([], TEXTS, code="ru") == [0, 1, 7 / 14, 0, 0, None]
    assert language([], TEXTS[3:5], code="ja") == [3 / 5, 1]


def test_the_rows_own_language():
    assert language([], TEXTS[:2], ["ru", None]) == [0, 0]
    assert language([], TEXTS[:2], ["en", "ru"]) == [1, 1]


def test_the_detector_tells_languages_of_one_script():
    texts = ["The weather is very nice today.", "Das Wetter ist heute sehr schön."]
    assert language([], texts, code="de", by="detector") == [0, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"code": "xx"}, "unknown code 'xx'"),
        ({"code": "english", "by": "detector"}, "unknown code 'english'"),
        ({"by": "scrpt"}, "did you mean 'script'"),
    ],
)
def test_unknown_languages_and_ways(settings, message):
    with pytest.raises(UserError, match=message):
        language([], ["a"], **settings)


@pytest.mark.parametrize("by", ["script", "detector"])
def test_a_row_of_an_unknown_language_is_missing_alone(by):
    failed, *others = language([], ["Good morning to you!"] * 3, ["xx", "en", None], by=by)
    assert isinstance(failed, Failed) and str(failed).startswith("unknown language 'xx'")
    assert others == [1, 1]


def test_what_is_not_installed_is_named_with_its_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs py3langid: pip install py3langid, or 'ptjax\[rew"):
        language([], ["a"], by="detector")
