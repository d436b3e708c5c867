"""Runs reasoning-gym's own scoring in a worker, with answers kept from being run as Python.

Some tasks call `eval` or sympy's `parse_expr`, which evaluates too, on what the model wrote. Here
the first reads literals and arithmetic, and the second is given formulas alone.
"""

import ast
import builtins
import functools
import json
import operator
import re
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from ptjax.rewards.gym_entries import unpacked

_FORMULA = re.compile(r"[\w\s+\-*/().,^!=]*")
_ATTRIBUTE = re.compile(r"[A-Za-z_)]\s*\.|\.\s*[A-Za-z_]|__")
_NAME = re.compile(r"[A-Za-z_]\w*")
_FUNCTIONS = frozenset(
    "sin cos tan sec csc cot asin acos atan sinh cosh tanh asinh acosh atanh exp log ln sqrt cbrt "
    "Abs pi E I factorial erf Si Ci li Ei gamma".split()
)
_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.Invert: operator.invert,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


def verdict(task: str, entry: str, answer: str) -> float | dict[str, str]:
    """The task's score of an answer; why it raised where it does not on the entry's own.

    Args:
      task: its name in reasoning-gym.
      entry: question, answer and metadata, as JSON.
      answer: what the model says.
    """
    score = scorer(task)
    try:
        return float(score(answer, unpacked(json.loads(entry))))
    except Exception as error:
        given = unpacked(json.loads(entry))
        score(given["answer"], given)
        return {"raised": f"{task} raises {type(error).__name__}: {error}"[:200]}


@functools.cache
def scorer(task: str) -> Callable[[str, Mapping[str, Any]], Any]:
    """reasoning-gym's function `(answer, entry) -> score` of a task."""
    score: Any = start().get_score_answer_fn(task)
    return score


@functools.cache
def start() -> ModuleType:
    """Imports reasoning-gym, and puts what does not run code where it would."""
    import reasoning_gym
    import sympy
    from sympy.parsing import sympy_parser

    known = {*dir(sympy)}

    def parse_expr(text: Any, *arguments: Any, **settings: Any) -> Any:
        return sympy_parser.parse_expr(formula(text, known), *arguments, **settings)

    sympy.parse_expr = parse_expr
    for name, module in [*sys.modules.items()]:
        if name.startswith("reasoning_gym"):
            vars(module)["eval"] = value_of
            if getattr(module, "parse_expr", None) is sympy_parser.parse_expr:
                vars(module)["parse_expr"] = parse_expr
    return reasoning_gym


def formula(text: Any, library: set[str]) -> str:
    """The text, where it is a formula: numbers, operators, variables, elementary functions.

    Raises:
      ValueError: it is more than that.
    """
    text = str(text)
    names = {*_NAME.findall(text)} - _FUNCTIONS
    strange = [n for n in names if len(n) > 1 and (n in library or hasattr(builtins, n))]
    if not _FORMULA.fullmatch(text) or _ATTRIBUTE.search(text) or strange:
        raise ValueError("no formula")
    return text


def value_of(text: str, *_: Any) -> Any:
    """The value of a literal or of arithmetic with numbers.

    Raises:
      ValueError: it is neither.
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return _value(ast.parse(text.strip(), mode="eval").body)


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.operand))
    raise ValueError("no number")
