"""The calculator calculates, and does nothing else."""

import pytest

from ptjax.environments.calculator import calculator


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("3 * 4", "12"),
        ("2 ^ 10", "1024"),
        ("(1 + 2) * -3", "-9"),
        ("7 / 2", "3.5"),
        ("7 // 2 + 7 % 4", "6"),
        ("1 / 3", "0.3333333333"),
        (" 1e3 ", "1000"),
    ],
)
def test_values(expression, value):
    assert calculator(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "1 / 0",
        "9 ** 9 ** 9",
        "9 ** 999",
        "(-1) ** 0.5",
        "__import__('os')",
        "a + 1",
        "1 +",
        "",
        "[1][0]",
        "'a' * 3",
        "1 if 1 else 2",
        "1 < 2",
        "1, 2",
        "True + 1",
        "x := 3",
        "0" * 300,
        "(" * 150 + "1" + ")" * 150,
        "1e200 * 1e200",
        "lambda: 1",
        "3 @ 4",
        "1_0j",
    ],
)
def test_what_is_no_such_expression_is_refused(expression):
    with pytest.raises(ValueError, match="."):
        calculator(expression)
