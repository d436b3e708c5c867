"""What must not change the loss: padding, packing, micro-batches, devices, chunks, order."""

import numpy as np
import pytest

from ptjax.errors import UserError
from ptjax.models.compute import REMAT
from ptjax.sharding import make_mesh
from tests import toy
from tests.full import only_in_full
from tests.toy import assert_same, loss_and_gradients

# One case a reduction: the gradient made with the forward pass, the recomputed one with every
# field, and a loss that stops gradients.
CASES = {
    "nll": {},
    "smoothed_z": dict(label_smoothing=0.1, z_loss_weight=1e-2),
    "dft": dict(loss="dft"),
}
EXAMPLES = toy.examples()


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def wanted(case):
    return loss_and_gradients(toy.batch(EXAMPLES), **case)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side_and_amount(case, wanted, side):
    assert_same(loss_and_gradients(toy.batch(EXAMPLES, 19, side), **case), wanted)


def test_left_padding_without_more_of_it(case, wanted):
    assert_same(loss_and_gradients(toy.batch(EXAMPLES, side="left"), **case), wanted)


def test_packed_is_unpacked(case, wanted):
    columns = toy.packed(EXAMPLES)
    assert len(columns["pack"]) < len(EXAMPLES)
    assert_same(loss_and_gradients(columns, **case), wanted)


def test_eight_micro_batches_of_one(case, wanted):
    assert len(EXAMPLES) == 8
    assert_same(loss_and_gradients(toy.batch(EXAMPLES), accumulate=8, **case), wanted)


def test_packed_micro_batches(case, wanted):
    columns = toy.packed(EXAMPLES, accumulate=2)
    assert len(columns["pack"]) < len(EXAMPLES)
    assert_same(loss_and_gradients(columns, accumulate=2, **case), wanted)


def test_a_permutation_of_the_batch(case, wanted):
    shuffled = [EXAMPLES[i] for i in np.random.RandomState(3).permutation(len(EXAMPLES))]
    assert_same(loss_and_gradients(toy.batch(shuffled), **case), wanted)


@pytest.mark.parametrize(("chunk", "case"), [(5, "nll"), (4096, "smoothed_z")])
def test_chunk_of_the_head(chunk, case):
    wanted = loss_and_gradients(toy.batch(EXAMPLES), **CASES[case])
    assert_same(loss_and_gradients(toy.batch(EXAMPLES), chunk=chunk, **CASES[case]), wanted)


def test_filler_rows_of_weight_zero():
    filler = toy.Example(np.array([5, 6, 7]), np.array([0, 1, 1], np.float32), 0.0)
    wanted = loss_and_gradients(toy.batch(EXAMPLES))
    assert_same(loss_and_gradients(toy.batch([*EXAMPLES, filler, filler])), wanted)


def test_weights_scale_together(wanted, case):
    heavier = [example._replace(weight=3 * example.weight) for example in EXAMPLES]
    assert_same(loss_and_gradients(toy.batch(heavier), **case), wanted)


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_is_within_its_rounding(case):
    columns = toy.packed(EXAMPLES)
    wanted = loss_and_gradients(columns, **CASES[case])
    loss, grads = loss_and_gradients(columns, dtype="bfloat16", **CASES[case])
    np.testing.assert_allclose(loss, wanted[0], rtol=1e-2)
    for name, gradient in wanted[1].items():
        error = np.linalg.norm(grads[name] - gradient) / np.linalg.norm(gradient)
        assert error < 0.05, (name, error)
        assert grads[name].dtype == np.float32


@pytest.mark.parametrize(
    ("mesh", "case"),
    [
        ("fsdp 8", "nll"),
        ("fsdp 4 x tensor 2", "dft"),
        ("data 2 x fsdp 2 x tensor 2", "smoothed_z"),
        ("sequence 2 x fsdp 4", "nll"),
        pytest.param("sequence 8", "smoothed_z", marks=only_in_full),
        pytest.param("fsdp 4 x tensor 2", "nll", marks=only_in_full),
        pytest.param("data 2 x fsdp 2 x tensor 2", "nll", marks=only_in_full),
        pytest.param("sequence 2 x fsdp 2 x tensor 2", "nll", marks=only_in_full),
        pytest.param("sequence 2 x fsdp 4", "dft", marks=only_in_full),
    ],
)
def test_packed_on_a_mesh_is_one_device(mesh, case):
    mesh = make_mesh(toy.MESHES[mesh])
    wanted = loss_and_gradients(toy.batch(EXAMPLES), **CASES[case])
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    row = 12 + -12 % mesh.shape.get("sequence", 1)
    columns = toy.packed(EXAMPLES, shards=shards, row=row)
    assert shards == len(EXAMPLES) or len(columns["pack"]) > shards
    assert_same(loss_and_gradients(columns, mesh=mesh, **CASES[case]), wanted)


@pytest.mark.parametrize(
    ("mesh", "accumulate", "case"),
    [
        ("fsdp 8", 1, "dft"),
        ("fsdp 4 x tensor 2", 2, "smoothed_z"),
        pytest.param("sequence 2 x fsdp 4", 2, "nll", marks=only_in_full),
    ],
)
def test_unpacked_on_a_mesh_is_one_device(mesh, accumulate, case):
    columns = toy.batch(EXAMPLES)
    wanted = loss_and_gradients(columns, **CASES[case])
    mesh = make_mesh(toy.MESHES[mesh])
    got = loss_and_gradients(columns, mesh=mesh, accumulate=accumulate, **CASES[case])
    assert_same(got, wanted)


def test_packed_micro_batches_on_a_mesh():
    mesh = make_mesh(toy.MESHES["data 2 x fsdp 2 x tensor 2"])
    columns = toy.packed(EXAMPLES, shards=4, accumulate=2)
    wanted = loss_and_gradients(toy.batch(EXAMPLES))
    assert_same(loss_and_gradients(columns, mesh=mesh, accumulate=2), wanted)


@pytest.mark.parametrize("remat", [policy for policy in REMAT if policy != "none"])
def test_rematerialisation(remat):
    columns = toy.packed(EXAMPLES)
    assert_same(loss_and_gradients(columns, remat=remat), loss_and_gradients(columns))


def test_heads_and_hidden_units_in_parts_on_a_mesh():
    mesh = make_mesh(toy.MESHES["fsdp 4 x tensor 2"])
    wanted = loss_and_gradients(toy.batch(EXAMPLES))
    assert_same(loss_and_gradients(toy.batch(EXAMPLES), mesh=mesh, remat="minimal"), wanted)


def test_rows_that_a_sequence_axis_does_not_divide():
    with pytest.raises(UserError, match="mesh.sequence = 8 does not divide rows of 12 tokens; set"):
        loss_and_gradients(toy.batch(EXAMPLES), mesh=make_mesh(toy.MESHES["sequence 8"]))
