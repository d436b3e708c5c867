"""Every family's logits and gradients against transformers, on small random models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.losses.router import expert_shares, load_balancing
from ptjax.models.cache import Cache
from ptjax.models.compute import Compute
from ptjax.models.convert import from_hf, to_hf
from ptjax.models.decoder import Decoder
from ptjax.models.load import read_config
from ptjax.models.weights import TensorSpec
from ptjax.ops.span import Span
from tests import toy
from tests.full import only_in_full
from tests.golden import weights

FAMILIES = sorted(path.stem for path in (weights.FOLDER / "models").glob("*.npz"))
BEGUN = 10
"""Tokens that are read before others are written behind them."""
COMPUTED = [
    pytest.param(name, marks=only_in_full) if name == "qwen3_moe" else name for name in FAMILIES
]
DECODED = [
    pytest.param(name, marks=only_in_full) if name in ("mixtral", "qwen3_moe") else name
    for name in FAMILIES
]
"""Mixtures of experts: one computes, and both decode, where there is time."""


quick_jit = functools.partial(jax.jit, compiler_options=toy.QUICK)


class Memory:
    """A checkpoint that lies in a dict."""

    origin = "memory"

    def __init__(self, tensors):
        self.tensors = tensors

    def specs(self):
        return {name: TensorSpec(t.shape, t.dtype) for name, t in self.tensors.items()}

    def read(self, name, index=None):
        return self.tensors[name][index or ()]


@functools.cache
def load(name):
    golden = weights.load(f"models/{name}")
    tensors = weights.state_dict(golden["shapes"], golden["config"])
    config = read_config(golden["config"], name)
    model = Decoder(config)
    return golden, tensors, model, from_hf(model.table, config.dims, Memory(tensors))


def span(golden):
    valid = jnp.asarray(golden["valid"])
    return Span(jnp.asarray(golden["positions"]), valid.astype(jnp.int32))


@pytest.mark.parametrize("name", FAMILIES)
def test_both_styles_of_config_mean_the_same(name):
    golden = weights.load(f"models/{name}")
    assert read_config(golden["hub_config"], name) == read_config(golden["config"], name)


@functools.cache
def run(name, remat):
    """Losses, hidden states, logits and gradients of the losses' sum, of one program."""
    golden, _, model, params = load(name)
    ids, valid = jnp.asarray(golden["ids"]), jnp.asarray(golden["valid"])

    @quick_jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        hidden, routing = model.routed(params, ids, span(golden), compute=Compute(remat=remat))
        logits = model.logits(params, hidden)
        logps = jax.nn.log_softmax(logits)[:, :-1]
        picked = jnp.take_along_axis(logps, ids[:, 1:, None], -1)[..., 0]
        weight = valid[:, 1:] & valid[:, :-1]
        nll, aux = -jnp.sum(picked * weight) / weight.sum(), 0.0
        if routing is not None:
            tokens = valid.sum().astype(jnp.float32)
            aux = load_balancing(expert_shares(routing.load, tokens), routing.probs) / tokens
        return nll + aux, ((nll, aux), hidden, logits)

    (_, (losses, hidden, logits)), gradients = loss(params)
    return losses, hidden, logits, gradients


@pytest.mark.parametrize("name", COMPUTED)
def test_logits(name):
    golden = load(name)[0]
    got = np.where(golden["valid"][..., None], run(name, "none")[2], 0)
    assert np.abs(got - golden["logits"]).max() < 2e-4
    assert np.abs(golden["logits"]).max() > 0.5


@pytest.mark.parametrize("name", COMPUTED)
def test_gradients(name, remat="none"):
    golden, _, model, _ = load(name)
    losses, _, _, gradients = run(name, remat)
    np.testing.assert_allclose(losses, (golden["nll"], golden.get("aux", 0.0)), rtol=1e-5)
    tensors = to_hf(model.table, model.config.dims, gradients, np.dtype("float32"))
    got = {key: weights.summary(key, tensor.get()) for key, tensor in tensors}
    for name, wanted in zip(golden["shapes"], golden["gradients"], strict=True):
        np.testing.assert_allclose(got[name], wanted, atol=2e-4 * (1 + wanted[1]), err_msg=name)


@pytest.mark.parametrize(
    ("name", "remat"),
    [("gemma3", "full"), ("llama_linear_bias", "minimal"), ("olmo2", "minimal")],
)
def test_gradients_where_the_layers_are_computed_again(name, remat):
    test_gradients(name, remat)


@pytest.mark.parametrize("name", FAMILIES)
def test_round_trip(name):
    _, tensors, model, params = load(name)
    tensors_out = to_hf(model.table, model.config.dims, params, np.dtype("float32"))
    written = {key: tensor.get() for key, tensor in tensors_out}
    assert written.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert written[key].tobytes() == tensor.tobytes()


@pytest.mark.parametrize("name", DECODED)
def test_cached_decoding_equals_the_full_forward(name):
    golden, _, model, params = load(name)
    ids, valid = jnp.asarray(golden["ids"])[:2], jnp.asarray(golden["valid"])[:2]
    full = run(name, "none")[1][:2]

    @quick_jit
    def step(params, ids, going, cache):
        return model.extend(params, ids, going, cache)

    read = quick_jit(model.read)(params, ids[:, :BEGUN], valid[:, :BEGUN].sum(1))
    shape = model.new_cache(2, 32, "float32")
    cache = Cache(
        *(
            tuple(jax.lax.dynamic_update_slice(*both, (0,) * 4) for both in zip(*of, strict=True))
            for of in ((shape.k, read.k), (shape.v, read.v))
        ),
        length=read.length,
    )
    parts = []
    for i in range(BEGUN, ids.shape[1]):
        hidden, cache = step(params, ids[:, i], valid[:, i] > 0, cache)
        parts.append(hidden)
    got, seen = jnp.stack(parts, 1), valid[:, BEGUN:, None]
    np.testing.assert_array_equal(cache.length, valid.sum(1))
    np.testing.assert_allclose(got * seen, full[:, BEGUN:] * seen, atol=1e-5)
