from fractions import Fraction

import pytest

from ptjax.rewards.answers import FORMS, answer_of, number, plain, same

WORKED = r"So $a=2$, \boxed{3} is wrong, and \boxed{\frac{1}{\sqrt{2}}}. #### 5,000" "\n"


@pytest.mark.parametrize(
    ("form", "text", "answer"),
    [
        ("boxed", WORKED, r"\frac{1}{\sqrt{2}}"),
        ("boxed", r"\boxed{\{1, 2\}} and", r"\{1, 2\}"),
        ("boxed", r"thus \boxed 7.", "7."),
        ("boxed", r"cut off \boxed{1 + \frac{2", None),
        ("boxed", r"\boxed{1} and cut off \boxed{2", None),
        ("hash", WORKED, "5,000"),
        ("hash", "#### 1\n#### 2 apples\nno", "2 apples"),
        ("tag", "<answer>1</answer><answer>\n2 </answer>", "2"),
        ("latex", r"from $x$ it is \( y \)", "y"),
        ("latex", "from $$x+\n1$$", "x+\n1"),
        ("number", "between 3 and -1,234.50 apples.", "-1,234.50"),
        ("number", "it is 3/4.", "3/4"),
        ("number", "version x2 of 5th", None),
        ("text", " a b ", "a b"),
    ],
)
def test_each_form_takes_its_last(form, text, answer):
    assert FORMS[form](text) == answer


def test_the_first_form_that_is_there_counts():
    assert answer_of(WORKED, ("tag", "hash", "boxed")) == ("hash", "5,000")
    assert answer_of("no answer", ("boxed", "hash", "number")) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("-1,234.5", Fraction(-2469, 2)),
        (".5", Fraction(1, 2)),
        (r"-\frac{3}{4}", Fraction(-3, 4)),
        (r"\frac34", Fraction(3, 4)),
        ("6/8", Fraction(3, 4)),
        ("1/0", None),
        ("1,22", None),
        ("1e9", None),
        ("9" * 5000, None),
    ],
)
def test_numbers_without_a_parser(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        (r"\frac{1}{2}", r"$\dfrac{1}{2}$.", True),
        ("0.5", r"\frac{1}{2}", True),
        ("10000", "10{,}000", True),
        ("90", r"90^\circ", True),
        (r"\left( 1, 2 \right)", "(1,2)", True),
        (r"\text{(A)}", "(A)", True),
        ("7", "8", False),
        ("0.333", r"\frac{1}{3}", None),
        ("x+1", "1+x", None),
        ("50", r"50\%", None),
    ],
)
def test_equal_at_once_unequal_at_once_or_left_to_a_parser(gold, answer, verdict):
    assert same(gold, answer) is verdict


def test_looks_do_not_count():
    assert plain(r"$$ \left\{ 1,\, 2 \right\} $$") == r"\{1,2\}"
