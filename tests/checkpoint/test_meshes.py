import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ptjax.checkpoint import Checkpoints

SPECS = {"w": ("fsdp", "tensor"), "b": ("tensor",), "n": (), "h": ("fsdp",)}
SHAPES = {"w": (16, 8), "b": (8,), "n": (), "h": (8, 3)}
MESHES = [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (4, 2), (8, 1), (2, 4)]


def shardings(shape):
    devices = jax.devices()[: shape[0] * shape[1]]
    mesh = jax.make_mesh(shape, ("fsdp", "tensor"), (AxisType.Auto,) * 2, devices=devices)
    return {name: NamedSharding(mesh, PartitionSpec(*spec)) for name, spec in SPECS.items()}


def values():
    dtypes = {"w": jnp.float32, "b": jnp.bfloat16, "n": jnp.int32, "h": jnp.bool}
    keys = jax.random.split(jax.random.key(0), len(SHAPES))
    return {
        name: (jax.random.uniform(key, SHAPES[name]) * 3).astype(dtypes[name])
        for name, key in zip(SHAPES, keys, strict=True)
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices")
    workdir = tmp_path_factory.mktemp("meshes")
    for number, shape in enumerate([(1, 1), (4, 2)]):
        with Checkpoints(workdir / str(number)) as checkpoints:
            checkpoints.save(1, jax.device_put(values(), shardings(shape)), {}, {})
    return workdir


@pytest.mark.parametrize("source", [0, 1])
@pytest.mark.parametrize("mesh", MESHES)
def test_a_state_comes_back_on_another_mesh(saved, source, mesh):
    want, target = values(), shardings(mesh)
    abstract = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=target[name])
        for name, leaf in want.items()
    }
    state = Checkpoints(saved / str(source)).restore(abstract).state
    for name, leaf in want.items():
        assert state[name].sharding == target[name]
        assert state[name].dtype == leaf.dtype
        assert np.asarray(state[name]).tobytes() == np.asarray(leaf).tobytes()
