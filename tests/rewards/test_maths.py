import json
import os
from pathlib import Path

import pytest

from ptjax.errors import UserError
from ptjax.rewards.base import Failed
from ptjax.rewards.maths import math

CASES = Path(os.environ.get("PTJAX_SHARED_DATA") or "nowhere") / "golden_math_verify/cases.jsonl"


def test_what_is_plainly_equal_needs_no_parser():
    texts = [r"\boxed{1/2}", "#### 0.5", "it is 0.50", r"\boxed{2}, not 0.5", "none"]
    found = math([], texts, answer=["0.5"] * 5, verify=False)
    assert found == [1, 1, 1, 0, 0]
    assert math([], texts, answer=["0.5"] * 5, forms=["boxed"], verify=False) == [1, 0, 0, 0, 0]


def test_the_first_of_three_columns_that_a_row_has():
    texts = [r"\boxed{1}"] * 4
    columns = {
        "answer": [1, None, None, None],
        "solution": ["so 2", r"\boxed{1}", None, None],
        "ground_truth": [None, "3", "thus\n#### 1", None],
    }
    assert math([], texts, **columns, verify=False) == [1, 1, 1, None]
    with pytest.raises(UserError, match="no column 'answer', 'solution' or 'ground_truth'"):
        math([], texts)


def test_any_of_several_right_answers():
    assert math([], [r"\boxed{2}", r"\boxed{3}"], answer=[["1", "2"]] * 2, verify=False) == [1, 0]


def test_math_verify_reads_the_rest_and_only_what_hangs_is_missing():
    texts = [r"\boxed{1+x}", r"\boxed{9^{9^{9^9}}}", r"\boxed{x+2}", r"\boxed{\frac{2x+2}{2}}"]
    found = math([], texts, answer=["x+1"] * 4, seconds=1.5)
    assert isinstance(found[1], Failed) and str(found[1]) == "took over 1.5 s"
    assert [found[0], *found[2:]] == [1, 0, 1]
    assert math([], [r"\boxed{2}"], answer=["?!"], seconds=1.5) == [None]


@pytest.mark.skipif(not CASES.exists(), reason="needs math-verify's own cases: PTJAX_SHARED_DATA")
def test_verdicts_are_those_of_math_verify():
    plain = {"file", "test", "gold", "pred", "expected", "passes_with_math_verify_0.9.0"}
    rows = [json.loads(line) for line in CASES.read_text().splitlines()]
    rows = [row for row in rows if {*row} == plain and row["expected"] is not None][::4]
    golds, texts = ([row[name] for row in rows] for name in ("gold", "pred"))
    found = math([], texts, answer=golds, forms=["text"])
    wrong = [r for r, value in zip(rows, found, strict=True) if value != r["expected"]]
    assert len(rows) > 25 and len(wrong) <= 2, wrong


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"forms": ["boxd"]}, "form 'boxd'; did you mean 'boxed'"),
        ({"forms": "boxed"}, "a list is expected"),
        ({"forms": []}, "a list is expected"),
        ({"seconds": 0.0}, "seconds=0.0"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(UserError, match=message):
        math([], [r"\boxed{x}"], answer=["y"], **settings)
