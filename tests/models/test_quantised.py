"""A quantised base is its dequantised kernels, a layer at a time, on any mesh."""

import functools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax import sharding
from ptjax.config import defaults
from ptjax.config.check import CHOICES
from ptjax.errors import UserError
from ptjax.models import lora as lora_module
from ptjax.models.adapt import adapt
from ptjax.models.compute import DEFAULT, Compute
from ptjax.models.fingerprint import fingerprint
from ptjax.models.load import load
from ptjax.models.quantised import BASES, Quantised, quantised
from ptjax.ops.span import Span
from ptjax.prepare import trainable
from tests import tiny
from tests.full import only_in_full

WIDE = dict(hidden_size=64, head_dim=16, num_hidden_layers=3)
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 200, (2, 9)))
SPAN = Span(jnp.broadcast_to(jnp.arange(9), (2, 9)), jnp.ones((2, 9), jnp.int32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.write_model(tmp_path_factory.mktemp("base") / "model", **WIDE))


@pytest.fixture(scope="module")
def loaded(folder):
    return functools.cache(lambda base="none", dtype="float32": load(
        folder, base=base, param_dtype=dtype
    ))  # fmt: skip


def dequantised(params):
    return {
        name: leaf.astype(jnp.float32) if isinstance(leaf, Quantised) else leaf
        for name, leaf in params.items()
    }


def adapted(bundle, **settings):
    """With adapters that do something."""
    mesh = sharding.make_mesh({}, jax.devices()[:1])
    bundle, rows = adapt(bundle, {"rank": 4, **settings}, seed=0, mesh=mesh)
    draw = np.random.default_rng(1)
    params = {
        name: leaf + 0.1 * jnp.asarray(draw.standard_normal(leaf.shape), jnp.float32)
        if name.endswith(".lora_b")
        else leaf
        for name, leaf in bundle.params.items()
    }
    return replace(bundle, params=params), rows


@functools.partial(jax.jit, static_argnums=(0, 3))
def loss_and_gradients(model, leaves, frozen, compute=DEFAULT):
    def loss(leaves):
        params = {**frozen, **leaves}
        logits = model.logits(params, model.hidden(params, IDS, SPAN, compute=compute))
        return jnp.mean(jnp.square(logits)), logits

    return jax.value_and_grad(loss, has_aux=True)(leaves)


def split(bundle):
    is_adapter = re.compile(r".*\.(lora_a|lora_b|dora_m)").fullmatch
    leaves = {name: leaf for name, leaf in bundle.params.items() if is_adapter(name)}
    return leaves, {n: leaf for n, leaf in bundle.params.items() if n not in leaves}


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, params):
    return model.logits(params, model.hidden(params, IDS, SPAN))


def stacks(compiled):
    """Arrays of a program as large as all layers' kernels, three of them."""
    shapes = re.findall(r"\w+\[([\d,]+)\]", compiled.as_text())
    found = {tuple(map(int, shape.split(","))) for shape in shapes}
    return {shape for shape in found if shape[0] == 3 and np.prod(shape) == 3 * 64 * 64}


CASES = [("nf4", {"dora": True}, "none"), ("int8", {"rslora": True}, "dots_and_attention")]


def compiled(bundle, frozen, remat):
    leaves, _ = split(bundle)
    lowered = loss_and_gradients.lower(bundle.model, leaves, frozen, Compute(remat=remat))
    return lowered.compile()


@pytest.mark.parametrize(
    ("base", "settings", "remat"), [CASES[0], pytest.param(*CASES[1], marks=only_in_full)]
)
def test_merged_it_is_the_same_model_and_never_dequantised_whole(loaded, base, settings, remat):
    bundle, _ = adapted(loaded(base), **settings)
    leaves, frozen = split(bundle)
    program = compiled(bundle, frozen, remat)
    assert not stacks(program), "kernels of all layers, dequantised"
    (_, logits), _ = program(leaves, frozen)
    merged = lora_module.merge(bundle.params, bundle.model.table, bundle.model.lora)
    plain = replace(bundle.model, lora=None)
    np.testing.assert_allclose(logits_of(plain, merged), logits, atol=1e-4)
    off = logits_of(plain, dequantised(loaded(base).params))
    assert np.abs(off - logits).max() > 0.01, "the adapters do something"


@only_in_full
@pytest.mark.parametrize(("base", "settings", "remat"), CASES)
def test_gradients_are_those_on_dequantised_kernels(loaded, base, settings, remat):
    bundle, _ = adapted(loaded(base), **settings)
    leaves, frozen = split(bundle)
    whole = compiled(bundle, dequantised(frozen), remat)
    assert stacks(whole), "kernels of all layers, as they are"
    (got, _), gradients = compiled(bundle, frozen, remat)(leaves, frozen)
    (wanted, _), exact = whole(leaves, dequantised(frozen))
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    for name in leaves:
        np.testing.assert_allclose(gradients[name], exact[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("base", ["nf4", "int8"])
def test_only_kernels_of_the_layers_are_quantised(loaded, base):
    exact, bundle = loaded(), loaded(base, "bfloat16")
    for name, row in bundle.model.table.items():
        leaf, wanted = bundle.params[name], exact.params[name]
        assert leaf.shape == wanted.shape and leaf.size == wanted.size
        assert leaf.dtype == jnp.bfloat16, "what is merged has the parameters' dtype"
        assert isinstance(leaf, Quantised) == (row.stacked and row.is_kernel)
        if isinstance(leaf, Quantised):
            bits = 8 * leaf.nbytes / leaf.size
            block = 16 if name == "layers.o" else 64  # a head's 16 numbers, all others 64
            assert bits == (4 if base == "nf4" else 8) + 32 / block
            off = jnp.abs(leaf.astype(jnp.float32) - wanted)
            assert 0 < jnp.max(off) < (0.16 if base == "nf4" else 0.005) * jnp.max(jnp.abs(wanted))


def test_a_mesh_changes_no_code(folder, loaded):
    one, mesh = loaded("nf4"), sharding.make_mesh(dict(fsdp=4, tensor=2))
    many = load(folder, base="nf4", mesh=mesh)
    assert fingerprint(many.params) == fingerprint(one.params)
    gate = many.params["layers.gate"]
    assert gate.codes.sharding.spec == sharding.partition(
        ("layers", "embed", "mlp"), (3, 32, 64), mesh
    )
    assert gate.codes.sharding.spec[1] == "fsdp" and gate.codes.sharding.spec[2] == "tensor"
    assert gate.scale.sharding.spec[1] is None, "one block does not divide"
    codes = gate.codes.at[0, 0, 0].add(1)
    other = {**many.params, "layers.gate": gate.replace(codes=codes)}
    differ = {n for n, sums in fingerprint(other).items() if sums != fingerprint(one.params)[n]}
    assert differ == {"layers.gate"}


def test_leaves_that_are_there_are_quantised_alike(loaded):
    exact, wanted = loaded(), loaded("nf4")
    mesh = sharding.make_mesh({}, jax.devices()[:1])
    made = quantised(exact.params, exact.model.table, "nf4", mesh)
    assert fingerprint(made) == fingerprint(wanted.params)
    assert quantised(made, exact.model.table, "nf4", mesh) == made, "and not twice"


def test_what_is_quantised_is_not_trained(loaded):
    config = defaults()
    config.trainable = r".*\.lora_a|layers\.q"
    with pytest.raises(UserError, match=r"matches layers.q, which config.model.base = 'nf4' keeps"):
        trainable(config, loaded("nf4").params)


def test_names(folder):
    assert CHOICES["model.base"] == BASES
    with pytest.raises(UserError, match="model.base = 'nf5'; did you mean 'nf4'"):
        load(folder, base="nf5")
    with pytest.raises(UserError, match="flax module keeps its own kernels"):
        load("flax:nowhere.build", base="nf4")
