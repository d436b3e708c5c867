import pytest

from ptjax.rewards.code_match import prints_alike, returns_alike
from ptjax.rewards.sandbox.inside.wire import pack, unpack


@pytest.mark.parametrize(
    ("out", "expected", "alike"),
    [
        ("3\n", "3", True),
        ("  3  \n\n", "3\n", True),
        ("1 2\n3\n", "1 2\n3", True),
        ("1 2 3", "1 2\n3", False),
        ("0.333333333", "0.3333333333333", True),
        ("0.33", "0.3333333333333", False),
        ("1e3 x", "1000.0 x", True),
        ("100000000000000001", "100000000000000000", False),
        ("1.0", "1", False),
        ("nan", "1.0", False),
        ("inf", "1e400", False),
        ("", "", True),
        ("", "0", False),
        ("Yes", "YES", False),
    ],
)
def test_outputs_are_alike_up_to_space_and_rounding(out, expected, alike):
    assert prints_alike(out, expected, 1e-6) is alike


def test_values_are_alike_as_they_were_packed():
    def alike(value, expected):
        return returns_alike(pack(value), expected, 1e-6)

    assert alike((1, (2, [3])), [1, [2, [3]]])
    assert alike({1: "a", "b": (2,)}, {"1": "a", "b": [2]})
    assert alike(0.1 + 0.2, 0.3)
    assert alike(None, None)
    assert not alike({1: "a"}, {"1": "a", "2": "b"})
    assert not alike({1: "a", 2: "b"}, {"1": "a"})
    assert not alike("1", 1)
    assert not alike([1, 2], [1])
    assert not alike({1, 2}, [1, 2])
    assert not alike(float("inf"), 1e308)
    assert not alike(b"x", "x")


@pytest.mark.parametrize(
    "packed",
    [
        {},
        {"dict": [["a"]]},
        {"dict": [["a", 1], ["a", 1]]},
        {"dict": [[["a"], 1]]},
        {"dict": {"a": 1}},
        {"tuple": 1},
        {"kept": 0},
        {"a": 1},
        {"dict": [["a", 1]], "tuple": []},
        10**400,
    ],
    ids=str,
)
def test_what_a_hostile_program_sends_is_like_nothing(packed):
    for expected in ({"a": 1}, [], 1.0, None, {}, "a"):
        assert not returns_alike(packed, expected, 1e-6)


def test_plain_data_comes_back_as_it_was():
    value = [1, -(10**30), 1.5, "ü", None, True, (1, (2,)), {1, 2}, frozenset([3]), b"\0", 1j]
    value.append({"a": {(1, 2): [3]}})
    assert unpack(pack(value)) == value


def test_nothing_but_plain_data_crosses():
    class Same(str):
        def __eq__(self, other):
            return True

        __hash__ = str.__hash__

    for value in (Same("a"), object(), len, [Same("a")], {Same("a"): 1}):
        with pytest.raises(TypeError):
            pack(value)
        assert "kept" in str(pack(value, lambda one: 0))
    with pytest.raises(RecursionError):
        deep = []
        for _ in range(1000):
            deep = [deep]
        pack(deep)


@pytest.mark.parametrize("packed", [{}, {"x": 1}, {"kept": 0}, {"dict": 1}, {"a": 1, "b": 2}])
def test_what_was_not_packed_is_refused(packed):
    with pytest.raises(ValueError, match="not packed"):
        unpack(packed)
