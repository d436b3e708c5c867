"""A calculator: numbers, + - * / // % **, parentheses; nothing is evaluated as Python."""

import ast
import operator
from collections.abc import Callable

_LONGEST = 200
_LARGEST = 10.0**100
_BINARY: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


def calculator(expression: str) -> str:
    """The value of an expression, at most ten significant digits of it where it is no whole number.

    Args:
      expression: at most 200 characters.

    Raises:
      ValueError: it is no such expression, or too large.
    """
    if len(expression) > _LONGEST:
        raise ValueError("the expression is too long")
    try:
        value = _value(ast.parse(expression.strip().replace("^", "**"), mode="eval").body)
    except ZeroDivisionError:
        raise ValueError("division by zero") from None
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError("not an expression") from None
    return str(value) if isinstance(value, int) else f"{value:.10g}"


def _value(node: ast.expr) -> int | float:
    if isinstance(node, ast.Constant):
        number = node.value
        if isinstance(number, int | float) and not isinstance(number, bool):
            return _bounded(number)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow) and (abs(right) > 100 or abs(left) > 1e6):
            raise ValueError("the power is too large")
        try:
            value = _BINARY[type(node.op)](left, right)
        except OverflowError:
            raise ValueError("the number is too large") from None
        if isinstance(value, complex):
            raise ValueError("not a real number")
        return _bounded(value)
    raise ValueError("only numbers, + - * / // % ** and parentheses")


def _bounded(value: int | float) -> int | float:
    if not abs(value) < _LARGEST:
        raise ValueError("the number is too large")
    return value
