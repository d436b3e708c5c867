import inspect
import math
import sys
from pathlib import Path

import pytest

from ptjax.errors import UserError
from ptjax.rewards import REWARDS, code
from ptjax.rewards import base as rewards
from ptjax.rewards.code_grade import grade
from ptjax.rewards.code_tests import BadTests, Holds, Prints, Returns, read
from ptjax.rewards.sandbox.limits import Limits
from ptjax.rewards.sandbox.session import SandboxError
from ptjax.rewards.score import score
from tests.shut_in import skip_where_nothing_can_be


@pytest.fixture(scope="module", autouse=True)
def sandbox():
    skip_where_nothing_can_be()


ADD = "```python\ndef add(a, b):\n    return a + b\n```"
SUBTRACT = "```python\ndef add(a, b):\n    return a - b\n```"
HUMANEVAL = (
    "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(0, 0) == 0\n"
)
UNITTEST = """
import unittest
class TestAdd(unittest.TestCase):
    def test_small(self):
        self.assertEqual(add(1, 2), 3)
    def test_text(self):
        self.assertEqual(add("a", "b"), "ab")
"""
PYTEST = """
from solution import add
def test_small():
    assert add(1, 2) == 3
def test_zero():
    assert add(5, 0) == 5
"""


@pytest.mark.parametrize(
    ("columns", "wrong"),
    [
        ({"test": [HUMANEVAL] * 2, "entry_point": ["add"] * 2}, 0),
        ({"test_list": [["assert add(1, 2) == 3", "assert add(5, 0) == 5"]] * 2}, 0.5),
        ({"tests": [PYTEST] * 2}, 0.5),
        ({"tests": [UNITTEST] * 2}, 0),
        ({"inputs": [[[1, 2], [5, 0]]] * 2, "outputs": [[3, 5]] * 2, "fn_name": ["add"] * 2}, 0.5),
        (
            {
                "input_output": [
                    '{"inputs": [[1, 2], [5, 0]], "outputs": [[3], [5]], "fn_name": "add"}'
                ]
                * 2
            },
            0.5,
        ),
    ],
    ids=["HumanEval", "MBPP", "pytest", "unittest", "columns", "APPS"],
)
def test_functions_are_tested_in_every_form(columns, wrong):
    assert code([], [ADD, SUBTRACT], **columns) == [1, wrong]
    assert code([], [ADD, SUBTRACT], **columns, score="all") == [1, 0]


def test_programs_are_tested_by_what_they_print():
    tests = [{"inputs": ["1 2\n", ["5", "0"]], "outputs": ["3\n", ["5"]]}] * 4
    programs = [
        "import sys; print(sum(map(int, sys.stdin.read().split())))",
        "print(3)",
        "print(sum(map(int, open(0).read().split()))); 1 / 0",
        "not Python",
    ]
    assert code([], programs, tests=tests) == [1, 0.5, 0, 0]


def test_the_last_block_is_the_program():
    tests = [[{"input": "", "output": "1"}]] * 5
    completions = [
        "```\nprint(2)\n```\nNo:\n```python\nprint(1)\n```\nDone.",
        "Here:\n```python\nprint(1)",
        "print(1)",
        "```python\nprint(1)\n```\n```\nprint(2)\n```",
        "```python\n```",
    ]
    assert code([], completions, tests=tests) == [1, 1, 1, 0, 0]


def test_a_row_says_its_limits_and_whether_it_has_tests():
    tests = [[{"input": "", "output": "1"}]] * 3 + [None, [], "def broken("]
    programs = ["import time; time.sleep(30); print(1)", "made = bytearray(2 * 10**8); print(1)"]
    found = code(
        [],
        [*programs, "print(1)", "print(1)", "print(1)", "print(1)"],
        tests=tests,
        time_limit=["0.1 seconds", None, 0.5, None, None, None],
        memory_limit=[None, 100, None, None, None, None],
    )
    assert found[:5] == [0, 0, 1, None, None]
    assert math.isnan(found[5])


def test_what_a_program_returns_is_compared_as_plain_data():
    def outcome(returned, expected, **settings):
        test = Returns("f", [], expected, **settings)
        return grade(f"def f(): return {returned}", [test], Limits())[0].passed

    assert outcome("(1, [2.0000000001], {3: 'a'})", [1, [2], {"3": "a"}])
    assert outcome("[7]", 7, wrapped=True) is False
    assert outcome("7", [7], wrapped=True)
    assert not outcome("{1, 2}", [1, 2])
    assert not outcome("float('nan')", 1.0)
    assert not outcome("10**17 + 1", 10**17)


def test_a_judge_sees_objects_only_through_what_they_answer():
    program = """
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x); return self
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __eq__(self, other): return True
    def __ne__(self, other): return False
def fail(): raise KeyError("gone")
class math: sqrt = lambda x: 0
"""

    def holds(source):
        return grade(program, [Holds(source)], Limits())[0].passed

    assert holds("s = Stack()\ns.push(1); s.push(2)\nassert len(s) == 2\nassert list(s) == [1, 2]")
    assert holds("try:\n    fail()\nexcept KeyError:\n    pass\nelse:\n    raise AssertionError")
    assert holds("assert math.sqrt(4) == 2"), "a module's name is the library's, not the program's"
    assert not holds("assert Stack() == 5")
    assert not holds("assert not Stack() != 5")
    assert not holds("assert Stack()")
    assert not holds("assert Stack().push(1) in [5]")
    assert not holds("import os\nos._exit(0)"), "a suite that does not come to its end"


def test_a_suite_may_import_the_program_as_it_likes():
    for first in ("from solution import *", "import solution\nadd = solution.add", ""):
        assert code([], [ADD, SUBTRACT], tests=[f"{first}\nassert add(1, 2) == 3"] * 2) == [1, 0]


def test_programs_have_the_packages_of_the_python_that_is_named():
    if sys.executable.startswith("/tmp/"):
        with pytest.raises(UserError, match="/tmp is the programs' own in the sandbox"):
            grade("", [Prints("", "")], Limits(), python=sys.executable)
        return
    program = "import numpy; print(numpy.arange(4).sum())"
    tests = [Prints("", "6")]
    assert grade(program, tests, Limits(), python=sys.executable)[0].passed


def test_a_program_that_ran_out_of_time_is_not_tried_again():
    limits = Limits(cpu_seconds=0.2, wall_seconds=0.4)
    found = grade("while True: pass", [Prints("", "")] * 50, limits)
    assert found[0].why in ("cpu", "time")
    assert {one.why for one in found[1:]} == {f"not tried after {found[0].why}"}


def test_no_run_sees_the_processes_of_another():
    program = "import subprocess\nprint(open('/tmp/pid', 'a+').read())"
    leaves = "import os, time\nif os.fork() == 0: time.sleep(60)\nprint(1)"
    assert [one.passed for one in grade(leaves, [Prints("", "1")] * 3, Limits())] == [True] * 3
    assert grade(program, [Prints("", "")], Limits())[0].passed


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"tests": "{not json"}, "tests are no JSON"),
        ({"tests": {"inputs": ["1"]}}, "two lists, are expected"),
        ({"tests": {"inputs": ["1"], "outputs": []}}, "1 inputs and 0 outputs"),
        ({"tests": {"inputs": ["1"], "outputs": ["1"], "fn_name": "f"}}, "lists of arguments"),
        ({"tests": [3]}, "a test is '3'"),
        ({"tests": 3}, "tests are a int"),
        ({"test": HUMANEVAL}, "no entry_point"),
        ({"tests": {"inputs": [[object()]], "outputs": ["1"], "fn_name": "f"}}, "no plain data"),
        ({"test": "def f(:"}, "do not parse"),
        ({"tests": [{"input": "[", "output": "1"}], "fn_name": "f"}, "arguments of f are no JSON"),
    ],
)
def test_tests_that_cannot_be_read_say_why(row, reason):
    with pytest.raises(BadTests, match=reason):
        read(row)


def test_functional_tests_have_an_argument_a_line():
    row = {
        "tests": [{"input": "[1, 2]\n3", "output": "6", "testtype": "functional"}],
        "fn_name": "f",
    }
    assert read(row) == [Returns("f", [[1, 2], 3], 6)]


def test_a_sandbox_that_does_not_start_makes_a_score_missing(monkeypatch):
    tries = []

    def fails(source, *args, **settings):
        tries.append(source)
        if "1" in source or len(tries) < 2:
            raise SandboxError("no room")
        return grade(source, *args, **settings)

    monkeypatch.setattr(sys.modules[code.__module__], "grade", fails)
    tests = [[{"input": "", "output": "2"}]] * 2
    assert code([], ["print(2)"], tests=tests[:1]) == [1], "it is tried once more"
    one, two = code([], ["print(1)", "print(2)"], tests=tests)
    assert math.isnan(one)
    assert two == 1
    with pytest.raises(SandboxError, match="no room"):
        code([], ["print(1)"], tests=tests[:1])


def test_a_config_names_it_like_any_other():
    (one,) = rewards.rewards([{"name": "code", "score": "all", "seconds": 2.0}])
    found = score([one], [""] * 2, [ADD, SUBTRACT], {"tests": [PYTEST] * 2, "other": [1, 2]})
    assert found.total.tolist() == [1, 0]
    assert not found.failed
    assert REWARDS["code"] is code


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score": "al"}, "did you mean 'all'"),
        ({"seconds": 0}, "limit cpu_seconds = 0"),
        ({"memory_mb": True}, "limit memory_mb = True"),
        ({"tests": None}, "no column of tests; known: tests"),
        ({"python": "/no/python"}, "'/no/python' does not run"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    given = {"tests": [PYTEST]} | settings
    with pytest.raises(UserError, match=message):
        code([], [ADD], **given)


def test_the_page_lists_every_setting_with_its_default():
    page = (Path(__file__).parents[2] / "docs" / "code_sandbox.md").read_text()
    for parameter in inspect.signature(code).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            default = str(parameter.default).replace("1e-06", "1e-6")
            quoted = f'`"{default}"`' if isinstance(parameter.default, str) else default
            assert f"| `{parameter.name}` | {quoted} |" in page
        else:
            assert parameter.name in ("prompts", "completions") or f"`{parameter.name}`" in page
