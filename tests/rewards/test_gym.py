import json
import subprocess
import sys

import pytest

from ptjax.errors import UserError
from ptjax.rewards.base import Failed
from ptjax.rewards.gym import inside, reasoning_gym
from ptjax.rewards.gym_entries import packed, unpacked
from ptjax.rewards.gym_worker import formula, value_of, verdict
from ptjax.rewards.tasks import rows


def test_the_answer_is_what_the_last_tag_holds():
    assert inside("<answer>1</answer> so <answer> 2\n</answer>", "answer") == "2"
    for text in ("2", "<answer>2", "2</answer>", "</answer>2<answer>"):
        assert inside(text, "answer") is None


def test_a_task_scores_its_own_entries_and_only_what_it_fails_on_is_missing():
    (one,) = rows("chain_sum", 1, seed=3, settings={"max_terms": 2})
    (arc,) = rows("prime_factorization", 1, seed=3, settings={})
    texts = [f"so <answer>{one['answer']}</answer>", one["answer"], "<answer>x</answer>", "", ""]
    task = [one["task"], one["task"], arc["task"], None, "no_task"]
    entry = [one["entry"], one["entry"], arc["entry"], None, "{}"]
    texts[4] = "<answer>1</answer>"
    found = reasoning_gym([], texts, task, entry)
    assert found[:2] == [1, 0] and found[3] is None
    assert isinstance(found[2], Failed) and "prime_factorization raises ValueError" in str(found[2])
    assert isinstance(found[4], Failed)
    assert reasoning_gym([], texts[2:3], task[2:3], entry[2:3], raising=0.0) == [0]
    assert reasoning_gym([], [one["answer"]], task[:1], [json.loads(one["entry"])], tag=None) == [1]


@pytest.mark.parametrize("task", ["countdown", "rearc", "n_queens", "bitwise_arithmetic"])
def test_entries_that_json_does_not_hold_as_they_are_and_tasks_that_evaluate(task):
    (row,) = rows(task, 1, seed=0, settings={})
    assert verdict(task, row["entry"], row["answer"]) == 1
    wrong = verdict(task, row["entry"], "__import__('os')._exit(1)")
    assert isinstance(wrong, dict) or wrong < 0.1


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "().__class__",
        "open('x')",
        "open(1)",
        "eval(1)",
        "lambda: 1",
        "Integer(1).func",
        "sympify(1)",
        "[x for x in y]",
        "a[0]",
        "x.y",
    ],
)
def test_what_a_model_says_is_never_run(text):
    with pytest.raises(ValueError):
        formula(text, {"Integer", "sympify"})
    with pytest.raises((ValueError, SyntaxError)):
        value_of(text)


def test_formulas_and_literals_are():
    assert formula("2*x**3 - sin(x)/4.5 + C", {"sin", "C"})
    assert value_of("[[1, 2], ['a']]") == [[1, 2], ["a"]]
    assert value_of(" (0x1f + 3) * -2 // 5 ^ 1") == (0x1F + 3) * -2 // 5 ^ 1


def test_entries_survive_json():
    entry = {"a": (1, [2, (3,)]), "b": {1: "x"}, "c": {3, 2}, "d": None, "e": 1.5}
    assert unpacked(json.loads(json.dumps(packed(entry)))) == entry


def test_rows_differ_and_those_held_out_are_not_trained_on(tmp_path):
    out = tmp_path / "sums.jsonl"
    command = [sys.executable, "-m", "ptjax.rewards.tasks", "--task=chain_sum", f"--out={out}"]
    command += ["--count=20", "--held_out=5", '--settings={"max_terms": 2, "max_digits": 1}']
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    train, held_out = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (out, tmp_path / "sums.held_out.jsonl")
    )
    assert said.startswith("written     20 rows") and (len(train), len(held_out)) == (20, 5)
    assert len({row["prompt"] for row in train + held_out}) == 25
    assert {*train[0]} == {"prompt", "answer", "task", "entry", "scorer"}


@pytest.mark.parametrize(
    ("task", "count", "settings", "message"),
    [
        ("chain_sun", 1, {}, "no task 'chain_sun' in reasoning-gym; did you mean 'chain_sum'"),
        ("chain_sum", 1, {"max_term": 1}, "unknown key 'max_term'; did you mean 'max_terms'"),
        ("chain_sum", 1, {"min_terms": 9}, "task chain_sum: {'min_terms': 9}"),
        ("chain_sum", 0, {}, "at least 1"),
        (
            "chain_sum",
            500,
            {"min_terms": 2, "max_terms": 2, "max_digits": 1},
            r"different questions in 2000 tries, 500 are asked for",
        ),
    ],
)
def test_mistakes_are_one_line(task, count, settings, message):
    with pytest.raises(UserError, match=message):
        rows(task, count, seed=0, settings=settings)
