"""Whether what came out of a sandbox is what was expected; decided outside it."""

import math
from collections.abc import Mapping
from typing import Any

from ptjax.rewards.sandbox.inside.wire import DEPTH


def prints_alike(out: str, expected: str, tolerance: float) -> bool:
    """Whether two outputs have the same lines, apart from space around them and rounding.

    A word may differ where the expected one is a number with a point or an exponent.
    """
    ours, theirs = out.strip().splitlines(), expected.strip().splitlines()
    return len(ours) == len(theirs) and all(
        a.strip() == b.strip() or _words_alike(a.split(), b.split(), tolerance)
        for a, b in zip(ours, theirs, strict=True)
    )


def _words_alike(ours: list[str], theirs: list[str], tolerance: float) -> bool:
    return len(ours) == len(theirs) and all(
        a == b or _close(_rounded(a), _rounded(b) if set(b) & set(".eE") else None, tolerance)
        for a, b in zip(ours, theirs, strict=True)
    )


def _rounded(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _close(ours: float | None, theirs: float | None, tolerance: float) -> bool:
    if ours is None or theirs is None or not (math.isfinite(ours) and math.isfinite(theirs)):
        return False
    return math.isclose(ours, theirs, rel_tol=tolerance, abs_tol=tolerance)


def returns_alike(packed: Any, expected: Any, tolerance: float, depth: int = DEPTH) -> bool:
    """Whether a returned value is the expected one of a JSON file.

    A tuple is as good as a list, and a key as good as its text, since JSON has neither; floats may
    differ by the tolerance, relative or absolute. The value is compared as it was packed: no set or
    dict is made of what a hostile program chose.

    Args:
      packed: what `wire.pack` made, or anything else that JSON holds.
      expected: plain data.
      tolerance: 0: equal.
      depth: levels that are compared; deeper ones are not alike.
    """
    if depth == 0:
        return False
    if isinstance(packed, dict):
        ((kind, inner),) = packed.items() if len(packed) == 1 else ((None, None),)
        if kind == "dict" and isinstance(expected, Mapping) and isinstance(inner, list):
            return _items_alike(inner, expected, tolerance, depth)
        packed = inner if kind == "tuple" else None
        if not isinstance(packed, list):
            return False
    if isinstance(packed, list):
        if not isinstance(expected, list | tuple) or len(packed) != len(expected):
            return False
        pairs = zip(packed, expected, strict=True)
        return all(returns_alike(a, b, tolerance, depth - 1) for a, b in pairs)
    if isinstance(packed, float) or isinstance(expected, float):
        if not isinstance(packed, int | float) or not isinstance(expected, int | float):
            return False
        try:
            return packed == expected or _close(float(packed), float(expected), tolerance)
        except OverflowError:
            return False
    return packed == expected


def _items_alike(
    items: list[Any], expected: Mapping[Any, Any], tolerance: float, depth: int
) -> bool:
    wanted = {_key(key): value for key, value in expected.items()}
    for item in items:
        if (
            not isinstance(item, list)
            or len(item) != 2
            or not isinstance(item[0], str | int | float)
        ):
            return False
        key = _key(item[0])
        if key not in wanted or not returns_alike(item[1], wanted.pop(key), tolerance, depth - 1):
            return False
    return not wanted


def _key(key: Any) -> Any:
    return str(key) if isinstance(key, int | float) else key
