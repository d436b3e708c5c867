"""Rows of a table: axes, layouts, initial values."""

import jax
import numpy as np
import pytest

from ptjax.models.families import FAMILIES
from ptjax.models.spec import (
    Param,
    from_layout,
    hf_names,
    hf_shape,
    init,
    part_from_layout,
    shape,
    shapes,
    to_layout,
)

DIMS = dict(layers=3, embed=6, heads=2, head_dim=4, vocab=10)
Q = Param("layers embed -> heads head_dim", "l.{}.q", "(heads head_dim) embed")
OUT = Param("layers heads head_dim -> embed", "l.{}.o", "embed (heads head_dim)")
NORM = Param("layers embed", "l.{}.n", init="ones")


def test_a_row_says_what_it_is():
    assert Q.names == ("layers", "embed", "heads", "head_dim")
    assert (Q.inputs, Q.outputs) == (("embed",), ("heads", "head_dim"))
    assert Q.is_kernel and Q.stacked and not NORM.is_kernel
    assert shape(Q, DIMS) == (3, 6, 2, 4)
    assert hf_shape(Q, DIMS) == (8, 6)
    assert list(hf_names("q", Q, DIMS)) == [("l.0.q", (0,)), ("l.1.q", (1,)), ("l.2.q", (2,))]
    assert list(hf_names("e", Param("vocab embed", "e"), DIMS)) == [("e", ())]


@pytest.mark.parametrize("row", [Q, OUT, NORM])
def test_layouts_go_there_and_back(row):
    tensor = np.random.RandomState(0).standard_normal(hf_shape(row, DIMS)).astype(np.float32)
    ours = from_layout(tensor, row, DIMS)
    assert ours.shape == shape(row, DIMS)[1:]
    assert to_layout(ours, row, DIMS).tobytes() == tensor.tobytes()


@pytest.mark.parametrize("row", [Q, OUT, NORM, Param("vocab embed", "e")])
@pytest.mark.parametrize("start", [0, 1])
def test_of_a_part_no_more_is_read_than_its_outer_axes_say(row, start):
    tensor = np.random.RandomState(0).standard_normal(hf_shape(row, DIMS)).astype(np.float32)
    index = tuple(slice(start, DIMS[name] - 1) for name in row.one.names)
    read = []

    def cut(index):
        read.append(tensor[index])
        return read[-1]

    part = part_from_layout(cut, row, DIMS, index)
    np.testing.assert_array_equal(part, from_layout(tensor, row, DIMS)[index])
    inner = 4 / (3 - start) if "head_dim" in row.names else 1  # head_dim is read whole
    assert read[0].size == round(part.size * inner) < tensor.size


def test_a_kernel_multiplies_as_its_tensor_does():
    x = np.random.RandomState(1).standard_normal(6)
    tensor = np.random.RandomState(0).standard_normal((8, 6))
    ours = np.einsum("d,dhe->he", x, from_layout(tensor, Q, DIMS))
    np.testing.assert_allclose(ours.reshape(8), tensor @ x)


def test_a_layout_that_names_other_axes_raises():
    with pytest.raises(ValueError, match="does not name the axes"):
        hf_shape(Param("embed -> vocab", "x", "vocab mlp"), DIMS)


def test_initial_values():
    table = {"q": Q, "norm": NORM, "embed": Param("vocab embed", init="embed")}
    wide = {**DIMS, "embed": 400, "vocab": 300}
    table["a"] = Param("layers embed -> heads", init="uniform")
    table["b"] = Param("layers heads -> embed", init="zeros")
    made = jax.jit(lambda key: init(table, wide, key))(jax.random.key(0))
    assert {k: v.shape for k, v in made.items()} == {
        k: v.shape for k, v in shapes(table, wide, np.dtype("float32")).items()
    }
    np.testing.assert_allclose(np.std(made["q"]), 400**-0.5, rtol=0.05)
    np.testing.assert_allclose(np.std(made["embed"]), 0.02, rtol=0.05)
    assert 0.9 * 400**-0.5 < np.abs(made["a"]).max() <= 400**-0.5
    assert (made["norm"] == 1).all() and not made["b"].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_two_rows_of_a_family_share_a_tensor(family):
    table = FAMILIES[family].table
    assert len({row.hf for row in table.values()}) == len(table)
    for row in table.values():
        assert row.stacked == ("{}" in row.hf)
        hf_shape(row, dict.fromkeys(row.names, 2))
