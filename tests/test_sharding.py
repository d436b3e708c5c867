"""Meshes, rules, and the placing of batches on eight virtual devices."""

import collections
import dataclasses
import itertools
import logging
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ptjax import sharding
from ptjax.errors import UserError
from ptjax.models.families import FAMILIES
from tests.two import told_by

MESH = dict(data=2, fsdp=2, tensor=2)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(MESH)


def test_one_size_may_be_left_open():
    assert sharding.make_mesh(dict(fsdp=-1, tensor=2)).shape == dict(data=1, fsdp=4, tensor=2)
    assert sharding.make_mesh({}, jax.devices()[:1]).size == 1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(fsdp=3), "mesh data 1 x fsdp 3 x tensor 1 needs 3 devices, but there are 8"),
        (dict(fsdp=-1, tensor=3), "3 does not divide the 8 devices"),
        (dict(data=-1, fsdp=-1), "at most one is -1"),
        (dict(data=0, fsdp=-1), "sizes are positive"),
        (dict(fsdp=-2), "sizes are positive"),
        (dict(fsdp=None), "config.mesh.fsdp = None: a whole number is meant"),
        (dict(sequence=None), "config.mesh.sequence = None: a whole number is meant"),
        (dict(tensor=2.0), "config.mesh.tensor = 2.0: a whole number is meant"),
        (dict(tensors=2), "unknown key 'tensors'; did you mean 'tensor'"),
    ],
)
def test_a_mesh_that_cannot_be(sizes, message):
    with pytest.raises(UserError, match=message):
        sharding.make_mesh(sizes)


def test_parameters_are_not_sharded_over_slices():
    devices = [SimpleNamespace(platform="tpu", slice_index=i // 4) for i in range(8)]
    with pytest.raises(UserError, match="there are 2 slices.*set data to a multiple of 2"):
        sharding.make_mesh({"fsdp": -1}, devices)


@pytest.mark.parametrize(
    ("sizes", "shape"), [(MESH, (2, 2, 2)), (dict(data=4, fsdp=-1), (4, 2, 1))], ids=str
)
def test_data_goes_over_slices_first(sizes, shape):
    """Eight chips in two slices of 2x2, given in no order."""
    at = itertools.product(range(2), repeat=3)
    chips = [Chip((x, y, 0), slice_index=slice_index) for y, slice_index, x in at]
    mesh = sharding.make_mesh(sizes, chips)
    assert mesh.axis_names == ("data", "fsdp", "tensor") and mesh.devices.shape == shape
    slices = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    assert (slices.reshape(2, -1) == [[0], [1]]).all()


@dataclasses.dataclass(frozen=True)
class Chip:
    """One of 4x8x8 v5p chips, of which a host has 2x2x1."""

    coords: tuple[int, int, int]
    slice_index: int = 0
    platform = "tpu"
    device_kind = "TPU v5p"
    core_on_chip = 0

    @property
    def process_index(self):
        x, y, z = self.coords
        return x // 2 + y // 2 * 2 + z * 8


@pytest.mark.parametrize(
    ("sizes", "near"),
    [(dict(tensor=2), [1]), (dict(sequence=2, tensor=2), [1]), (dict(tensor=8), [1, 2, 3, 4])],
    ids=str,
)
def test_an_axis_may_take_some_of_an_axis_of_the_torus(sizes, near):
    """Of 4x4x4 chips: two of a row, or two rows; between them are so many steps of the wires."""
    chips = [Chip((x, y, z)) for z, y, x in itertools.product(range(4), repeat=3)]
    mesh = sharding.make_mesh(dict(fsdp=-1, **sizes), chips)
    assert sorted(chip.coords for chip in mesh.devices.flat) == sorted(one.coords for one in chips)
    for group in mesh.devices.reshape(-1, sizes["tensor"]):
        first, *rest = np.array([chip.coords for chip in group])
        steps = {int(np.abs(other - first).sum()) for other in rest}
        assert sorted(steps) == near


def test_two_hosts_of_a_slice_may_share_their_shards():
    """The mesh of configs/sft_v5p_256.py: jax lays `tensor` on the axis of 4 chips."""
    chips = [Chip((x, y, z)) for z, y, x in itertools.product(range(8), range(8), range(4))]
    mesh = sharding.make_mesh(dict(fsdp=-1, tensor=4), chips)
    own = [sharding.process_shards(mesh, host) for host in range(64)]
    assert collections.Counter(shard for part in own for shard in part) == dict.fromkeys(
        range(64), 2
    )
    assert {len(part) for part in own} == {2} and len(set(own)) == 32
    for shard, devices in enumerate(mesh.devices[0]):
        assert all(shard in own[chip.process_index] for chip in devices)


def test_rows_of_processes_that_share_shards_come_to_their_place():
    """The second has rows of shards that the first has too, and of others: see the script."""
    script = Path(__file__).with_name("rows_of_two.py")
    told = told_by(script)
    assert all("all in its place" in out for out in told)


def test_rules(mesh):
    def spec(axes, *shape):
        return sharding.partition(axes.split(), shape, mesh)

    assert spec("layers embed heads head_dim", 3, 8, 4, 16) == P(None, "fsdp", "tensor", None)
    assert spec("vocab embed", 64, 8) == P("tensor", "fsdp")
    assert spec("batch length", 8, 16) == P(("data", "fsdp"), None)


def test_a_size_that_does_not_divide_is_replicated_and_logged(mesh, caplog):
    caplog.set_level(logging.INFO)
    assert sharding.partition(("vocab", "embed"), (63, 8), mesh) == P(None, "fsdp")
    assert "axis vocab of size 63 is not divided by ('tensor',) = 2" in caplog.text


def test_a_mesh_axis_used_twice_raises(mesh):
    with pytest.raises(ValueError, match="'tensor' twice"):
        sharding.partition(("heads", "mlp"), (4, 8), mesh)
    with pytest.raises(ValueError, match="'fsdp' twice"):
        sharding.partition(("batch", "embed"), (4, 8), mesh)


def test_an_axis_without_a_rule_raises(mesh):
    with pytest.raises(ValueError, match="no sharding rule for axis 'expert'"):
        sharding.partition(("expert", "embed"), (4, 8), mesh)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_table_has_rules(mesh, family):
    for row in FAMILIES[family].table.values():
        sharding.partition(row.names, [16] * len(row.names), mesh)


def test_a_batch_is_cut_over_data_and_fsdp(mesh):
    column = np.arange(24, dtype=np.int32).reshape(8, 3)
    placed = sharding.put_batch({"tokens": column}, mesh)["tokens"]
    np.testing.assert_array_equal(placed, column)
    assert placed.sharding.spec == P(("data", "fsdp"))
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}
    assert sharding.batch_shards(mesh) == 4


def test_constraints_hold_inside_jit(mesh):
    @jax.jit
    def spread(x):
        return sharding.constrain(x * 2, "batch", "vocab"), sharding.active_parts("batch")

    with jax.set_mesh(mesh):
        cut, shards = spread(jnp.ones((8, 4)))
        odd, _ = spread(jnp.ones((6, 3)))
    assert cut.sharding.shard_shape(cut.shape) == (2, 2)
    assert odd.sharding.is_fully_replicated
    assert shards == 4
    assert sharding.active_parts("batch") == 1
    np.testing.assert_array_equal(sharding.constrain(jnp.ones(3), "batch"), np.ones(3))
