"""Rewards by name, their settings and columns, and the sum that never takes a failure for 0."""

import asyncio
import subprocess
import sys
import time

import numpy as np
import pytest

from ptjax.errors import UserError
from ptjax.rewards import REWARDS
from ptjax.rewards.base import Failed, Reward, named, reward, rewards
from ptjax.rewards.score import score

PROMPTS = ["p", "q", "r"]
TEXTS = ["one", "one two", "one two three"]


def words(prompts, completions):
    return [len(text.split()) for text in completions]


def scored(*functions, columns=None, weights=None, **settings):
    weights = weights or [1.0] * len(functions)
    made = [Reward(f.__name__, f, w) for f, w in zip(functions, weights, strict=True)]
    return score(made, PROMPTS, TEXTS, columns or {}, **settings)


def test_a_weighted_sum():
    found = scored(words, lambda p, c: [0.5, 0.25, 0], weights=[2.0, -4.0])
    assert found.total.tolist() == [0, 3, 6] and found.total.dtype == np.float32
    assert found.each.tolist() == [[1, 0.5], [2, 0.25], [3, 0]]
    assert not found.failed


def test_who_abstains_is_left_out_and_where_all_do_there_is_no_score():
    found = scored(lambda p, c: [None, 1, None], lambda p, c: [5, 5, None])
    np.testing.assert_array_equal(found.total, [5, 6, np.nan])
    assert not found.failed


def test_a_monitor_has_values_and_no_say():
    """A reward of weight 0 neither gives a score where others abstain, nor takes one by failing."""
    fails = [Failed("no"), 7.0, 7.0]
    found = scored(lambda p, c: [1, 2, None], lambda p, c: fails, weights=[1.0, 0.0])
    np.testing.assert_array_equal(found.total, [1, 2, np.nan])
    np.testing.assert_array_equal(found.each[:, 1], [np.nan, 7, 7])
    assert found.failed == {"<lambda>: no": 1}
    assert found.fails.tolist() == [[False, True], [False, False], [False, False]]


def test_a_failure_is_missing_and_never_zero():
    found = scored(words, lambda p, c: [1, float("nan"), 2])
    np.testing.assert_array_equal(found.total, [2, np.nan, 5])
    assert found.failed == {"<lambda>: returned NaN or infinity": 1}


def test_what_is_missing_already_is_not_asked_about():
    seen = []

    def some(prompts, completions, answer):
        seen.append((prompts, completions, answer))
        return [len(text) for text in completions]

    columns = {"answer": [1, 2, 3]}
    found = scored(some, columns=columns, missing=[None, "environment: no", None])
    assert seen == [(["p", "r"], ["one", "one two three"], [1, 3])]
    np.testing.assert_array_equal(found.total, [3, np.nan, 13])
    np.testing.assert_array_equal(found.each[:, 0], [3, np.nan, 13])
    assert found.failed == {"environment: no": 1} and not found.fails.any()
    with pytest.raises(UserError, match="3 of 3 completions have no score.*3 x environment: no"):
        scored(words, missing=["environment: no"] * 3)
    assert np.isnan(scored(words, missing=["no"] * 3, max_missing=1.0).total).all()


def broken(prompts, completions):
    raise ValueError("no such\nthing")


async def broken_later(prompts, completions):
    raise ValueError("no such thing")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (broken, "ValueError: no such thing"),
        (broken_later, "ValueError: no such thing"),
        (lambda p, c: [1.0], "returned a list of another length"),
        (lambda p, c: 1.0, "returned float, not a list"),
        (lambda p, c: ["1", "2", "3"], "returned str, not a number"),
    ],
)
def test_reasons_are_counted_and_too_many_failures_stop(function, reason):
    found = scored(words, function, max_missing=1.0)
    assert np.isnan(found.total).all()
    assert found.failed == {f"{function.__name__}: {reason}": 3}
    with pytest.raises(UserError, match=f"3 of 3 completions have no score.*3 x .*{reason}"):
        scored(words, function)


def test_one_completions_failure_leaves_the_others():
    found = scored(
        words, lambda p, c: [1, Failed("took over 5 s"), ValueError("no such")], max_missing=1.0
    )
    np.testing.assert_array_equal(found.total, [2, np.nan, np.nan])
    assert found.failed == {"<lambda>: took over 5 s": 1, "<lambda>: ValueError: no such": 1}


def hangs(prompts, completions):
    time.sleep(5)
    return [1] * 3


async def hangs_later(prompts, completions):
    await asyncio.sleep(5)
    return [1] * 3


async def blocks_its_loop(prompts, completions):
    time.sleep(5)
    return [1] * 3


@pytest.mark.parametrize("function", [hangs, hangs_later, blocks_its_loop])
def test_a_reward_that_hangs_is_missing_and_the_others_are_not(function):
    before = time.monotonic()
    made = [Reward("slow", function, time_limit=0.1), Reward("words", words)]
    found = score(made, PROMPTS, TEXTS, {}, max_missing=1.0)
    assert time.monotonic() - before < 3
    assert np.isnan(found.total).all() and found.each[:, 1].tolist() == [1, 2, 3]
    assert found.failed == {"slow: TimeoutError: no answer in 0.1 s": 3}


def test_without_a_limit_it_runs_on_the_thread_that_asks():
    import threading

    def where(prompts, completions):
        return [float(threading.current_thread() is threading.main_thread())] * 3

    made = [Reward("here", where, time_limit=None), Reward("there", where)]
    assert score(made, PROMPTS, TEXTS, {}).each.tolist() == [[1, 0]] * 3


def test_the_extras_are_not_imported():
    code = "import sys, ptjax.rewards.score, ptjax.rewards.base as b; b.rewards(['math', 'format'])"
    code += "; print({'jax', 'sympy', 'math_verify', 'jsonschema', 'reasoning_gym', 'py3langid'}"
    code += " & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_mistake_of_the_user_is_no_failure_to_count():
    def unusable(prompts, completions):
        raise UserError("give a model")

    async def unusable_later(prompts, completions):
        raise UserError("give a model")

    for function in (unusable, unusable_later):
        with pytest.raises(UserError, match="give a model"):
            scored(function, max_missing=1.0)


def test_asynchronous_rewards_wait_together_also_where_a_loop_runs():
    both = asyncio.Event()

    async def first(prompts, completions):
        await both.wait()
        return [1, None, 1]

    async def second(prompts, completions):
        both.set()
        return np.ones(3)

    async def notebook():
        return scored(first, words, second)

    assert asyncio.run(notebook()).total.tolist() == [3, 3, 5]


def test_columns_by_name_or_all_and_settings_are_not_columns():
    seen = {}

    def some(prompts, completions, answer, hint=None, *, power=2):
        seen["some"] = (answer, hint, power)
        return [1] * 3

    def everything(prompts, completions, **columns):
        seen["all"] = columns
        return [1] * 3

    columns = {"answer": ["a", "b", "c"], "power": [7, 8, 9]}
    scored(some, everything, columns=columns)
    assert seen == {"some": (["a", "b", "c"], None, 2), "all": columns}
    with pytest.raises(UserError, match="reward some: no column 'answer'; did you mean 'answers'"):
        scored(some, columns={"answers": ["a"] * 3})


def test_no_completions_are_no_work():
    found = score(rewards([]), [], [], {})
    assert found.total.shape == (0,)
    assert score([Reward("broken", broken)], [], [], {}).total.shape == (0,)


@pytest.fixture
def outside(tmp_path, monkeypatch):
    text = "def polite(prompts, completions, *, word='please', **columns):\n"
    text += "    return [float(word in text) for text in completions]\n"
    text += "def short(prompts):\n    return []\nNUMBER = 3\n"
    (tmp_path / "my_rewards.py").write_text(text)
    (tmp_path / "my_crash.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("my_rewards", "my_crash"):
        sys.modules.pop(name, None)


def test_a_row_or_a_dotted_path_with_settings_and_weight(outside):
    assert named("length") is REWARDS["length"]
    ours, theirs = rewards(
        [{"name": "length", "target": 2, "weight": 3}, {"name": "my_rewards.polite", "word": "two"}]
    )
    assert (ours.weight, ours.settings, theirs.weight) == (3.0, {"target": 2}, 1.0)
    assert score([ours, theirs], PROMPTS, TEXTS, {}).total.tolist() == [1.5, 4, 4]
    assert reward("my_rewards.polite").settings == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("lenth", "reward: unknown 'lenth'; did you mean 'length'"),
        ("length", r"rewards\[0\]: reward 'length' needs 'target'"),
        ({"name": "length", "taget": 3}, "unknown key 'taget'; did you mean 'target'"),
        ({"name": "length", "target": 3, "weight": "2"}, "weight of 'length' is '2'"),
        ({"name": "length", "target": 3, "time_limit": 0}, "it must be above 0"),
        ({"name": "length", "target": 3, "time_limit": "1"}, "seconds or None expected"),
        ({"target": 3}, "a name, or a dict with a name, is expected"),
        (3, "a name, or a dict with a name, is expected"),
        ("my_rewards.polit", "my_rewards has no 'polit'; did you mean 'polite'"),
        ("my_rewards.short", r"must take \(prompts, completions"),
        ("my_rewards.NUMBER", "is not a function"),
        ("my_crash.f", "my_crash cannot be imported: ZeroDivisionError"),
        ("my_reward.polite", "No module named 'my_reward'"),
    ],
)
def test_what_leads_nowhere_is_one_line(outside, given, message):
    with pytest.raises(UserError, match=message):
        rewards([given])


def test_equal_values_have_equal_sums_wherever_they_stand():
    """To the last bit: a difference would be taken for a signal."""
    values = [0.1, 0.7, 0.3]
    judges = [
        Reward(f"r{i}", lambda p, c, value=value: [value] * len(c), weight)
        for i, (value, weight) in enumerate(zip(values, [0.3, 0.7, 0.1], strict=True))
    ]
    total = score(judges, [""] * 131, ["a"] * 131, {}).total
    assert len({*total.tolist()}) == 1
