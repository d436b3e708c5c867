"""reasoning-gym's entries as JSON, without loss."""

from typing import Any


def packed(value: Any) -> Any:
    """An entry as JSON holds it: tuples, sets and keys that are no text keep what they are."""
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: packed(one) for key, one in value.items()}
        return {"__items__": [[packed(key), packed(one)] for key, one in value.items()]}
    if isinstance(value, tuple):
        return {"__tuple__": [packed(one) for one in value]}
    if isinstance(value, set | frozenset):
        return {"__set__": [packed(one) for one in sorted(value, key=repr)]}
    if isinstance(value, list):
        return [packed(one) for one in value]
    if hasattr(value, "tolist"):
        return packed(value.tolist())
    return value if value is None or isinstance(value, str | int | float) else str(value)


def unpacked(value: Any) -> Any:
    """What `packed` was given."""
    if isinstance(value, list):
        return [unpacked(one) for one in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((key, inside),) = value.items()
        if key == "__items__":
            return {unpacked(name): unpacked(one) for name, one in inside}
        if key in ("__tuple__", "__set__"):
            return {"__tuple__": tuple, "__set__": set}[key](unpacked(inside))
    return {key: unpacked(one) for key, one in value.items()}
