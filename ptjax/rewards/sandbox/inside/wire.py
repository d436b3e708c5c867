"""Plain data as JSON and back: what crosses a sandbox's wall.

A value of exactly a built-in type crosses; anything else stays where it is, and its number goes in
its place. So what comes out has no methods of its own: nothing of it can answer a comparison.

Without annotations, since `typing` takes longer to import than all of this.
"""

DEPTH = 100
"""Levels of lists in lists that cross."""


def pack(value, keep=None, depth=DEPTH):
    """A value in what JSON has.

    Args:
      value: anything.
      keep: gives the number of what is no plain data; without it, that raises.
      depth: levels that are left.

    Raises:
      TypeError: no plain data.
      RecursionError: lists in lists in lists.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if depth == 0:
        raise RecursionError("nested too deep to leave the sandbox")
    if kind is list:
        return [pack(one, keep, depth - 1) for one in value]
    if kind in (tuple, set, frozenset):
        return {kind.__name__: [pack(one, keep, depth - 1) for one in value]}
    if kind is dict:
        items = [[pack(k, keep, depth - 1), pack(v, keep, depth - 1)] for k, v in value.items()]
        return {"dict": items}
    if kind is bytes:
        return {"bytes": value.hex()}
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    if keep is None:
        raise TypeError(f"{kind.__name__} is no plain data")
    return {"kept": keep(value)}


def unpack(value, kept=None):
    """What `pack` made, as a value again.

    Args:
      value: from JSON; it may come from a hostile program.
      kept: what stands for the number of a value that did not cross; without it, that raises.

    Raises:
      ValueError: `pack` does not make such a thing.
      TypeError: a set or dict of what has no hash.
    """
    if isinstance(value, list):
        return [unpack(one, kept) for one in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError("not packed")
    ((kind, inner),) = value.items()
    if kind == "kept" and type(inner) is int and kept is not None:
        return kept(inner)
    if kind == "bytes" and isinstance(inner, str):
        return bytes.fromhex(inner)
    if not isinstance(inner, list):
        raise ValueError("not packed")
    if kind == "dict":
        return {unpack(k, kept): unpack(v, kept) for k, v in inner}
    if kind == "complex":
        real, imaginary = inner
        return complex(float(real), float(imaginary))
    made = {"tuple": tuple, "set": set, "frozenset": frozenset}.get(kind)
    if made is None:
        raise ValueError("not packed")
    return made(unpack(one, kept) for one in inner)
