"""From tensors to sharded leaves and back: what is checked, and how much the host holds."""

import weakref

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ptjax import sharding
from ptjax.errors import UserError
from ptjax.models.convert import check, from_hf, to_hf
from ptjax.models.decoder import Decoder
from ptjax.models.load import read_config
from ptjax.models.weights import TensorSpec
from tests.golden import weights

GOLDEN = weights.load("models/smollm2")
TENSORS = weights.state_dict(GOLDEN["shapes"], GOLDEN["config"])
MODEL = Decoder(read_config(GOLDEN["config"], "smollm2"))
DIMS = MODEL.config.dims


class Counting:
    """A source that counts how many of the tensors it gave out are still held."""

    origin = "counting"

    def __init__(self, tensors=TENSORS):
        self.tensors, self.given, self.most, self.sizes = tensors, [], 0, {}

    def specs(self):
        return {name: TensorSpec(t.shape, t.dtype) for name, t in self.tensors.items()}

    def read(self, name, index=None):
        tensor = np.array(self.tensors[name][index or ()])
        self.sizes[name] = max(tensor.nbytes, self.sizes.get(name, 0))
        self.given = [ref for ref in self.given if ref() is not None] + [weakref.ref(tensor)]
        self.most = max(self.most, len(self.given))
        return tensor


def read(tensors=TENSORS, **settings):
    return from_hf(MODEL.table, DIMS, Counting(tensors), **settings)


@pytest.fixture(scope="module")
def params():
    return read()


def test_sharded_leaves_are_bit_equal(params):
    mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
    spread = read(mesh=mesh)
    for name, leaf in params.items():
        row = MODEL.table[name]
        assert spread[name].sharding == sharding.named(row.names, leaf.shape, mesh)
        assert np.asarray(spread[name]).tobytes() == np.asarray(leaf).tobytes()
    assert spread["layers.gate"].sharding.shard_shape((3, 48, 80)) == (3, 24, 40)


def test_the_host_holds_few_tensors_at_a_time():
    source = Counting()
    jax.block_until_ready(from_hf(MODEL.table, DIMS, source))
    assert source.most <= 2


def test_a_tied_head_is_compared_in_parts(monkeypatch):
    """It is the model's largest tensor, and never whole on the host beside the embeddings."""
    monkeypatch.setattr("ptjax.models.convert._ROWS", 40)
    head = TENSORS["model.embed_tokens.weight"].copy()
    source = Counting({**TENSORS, "lm_head.weight": head})
    jax.block_until_ready(from_hf(MODEL.table, DIMS, source))
    assert source.sizes["lm_head.weight"] == 40 * 48 * 4
    head[95, 47] += 1
    with pytest.raises(UserError, match="lm_head.weight differs"):
        from_hf(MODEL.table, DIMS, source)


def test_bfloat16_there_and_back():
    low = read(dtype="bfloat16")
    assert {leaf.dtype for leaf in low.values()} == {jnp.dtype("bfloat16")}
    for name, tensor in to_hf(MODEL.table, DIMS, low, np.dtype(ml_dtypes.bfloat16)):
        assert tensor.get().tobytes() == TENSORS[name].astype(ml_dtypes.bfloat16).tobytes()


def without(name):
    return {k: v for k, v in TENSORS.items() if k != name}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (without("model.norm.weight"), "counting: tensor 'model.norm.weight' is missing"),
        (
            {**TENSORS, "model.layers.3.mlp.up_proj.weight": np.ones((80, 48), np.float32)},
            "'model.layers.3.mlp.up_proj.weight' belongs to no parameter",
        ),
        (
            {**TENSORS, "model.norm.weight": np.ones(47, np.float32)},
            r"'model.norm.weight' has shape \(47,\), but the config asks for \(48,\)",
        ),
        (
            {**TENSORS, "lm_head.weight": TENSORS["model.embed_tokens.weight"] + 1},
            "lm_head.weight differs from the embeddings, but the config ties",
        ),
        (
            {**TENSORS, "lm_head.weight": np.ones((3, 48), np.float32)},
            "lm_head.weight differs from the embeddings, but the config ties",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_one_clear_line(tensors, message):
    with pytest.raises(UserError, match=message):
        read(tensors)


def test_buffers_of_old_checkpoints_are_passed_over():
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    check(MODEL.table, DIMS, Counting({**TENSORS, **extra}))
