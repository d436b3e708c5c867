"""A user's own linen and nnx models through the same forward pass, step, adapters and sampler."""

import functools
import sys
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.traverse_util import unflatten_dict

from ptjax import sharding
from ptjax.errors import UserError
from ptjax.forward import ForwardOptions, forward
from ptjax.generate import sample
from ptjax.models import lora as lora_module
from ptjax.models.compute import Compute
from ptjax.models.flax_adapter import wrap
from ptjax.models.load import load
from ptjax.models.lora import Lora
from ptjax.ops.span import Span
from ptjax.optim import make_optimizer
from ptjax.step import StepOptions, new_guard, train_step
from ptjax.types import TrainState
from tests import toy

V, D, LONGEST = 64, 16, 64


def mix(q, k, v, positions, segments):
    scores = jnp.einsum("rqe,rse->rqs", q, k) / D**0.5
    seen = (segments[:, :, None] == segments[:, None]) & (
        positions[:, :, None] >= positions[:, None]
    )
    return jax.nn.softmax(jnp.where(seen, scores, -1e30)) @ v


class Body(nn.Module):
    """What both linen models share; one kernel names its axes."""

    def setup(self):
        self.embed = nn.Embed(V, D)
        self.places = nn.Embed(LONGEST, D)
        self.qkv = nn.Dense(3 * D)
        named = nn.with_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
        self.up = nn.Dense(32, kernel_init=named)
        self.down = nn.Dense(D)
        self.norm = nn.LayerNorm()
        self.drop = nn.Dropout(0.3)
        self.out = self.param("out", nn.initializers.lecun_normal(), (D, V))

    def states(self, tokens, positions, segment_ids, deterministic, embed_noise=0.0):
        x = self.embed(tokens) + self.places(positions) + embed_noise
        x = self.drop(x, deterministic=deterministic)
        q, k, v = jnp.split(self.qkv(x), 3, -1)
        x = x + mix(q, k, v, positions, segment_ids)
        return self.norm(x + self.down(nn.gelu(self.up(x))))

    def __call__(self, tokens, positions, segment_ids, *, deterministic):
        return self.states(tokens, positions, segment_ids, deterministic) @ self.out


class LinenLogits(Body):
    """Gives logits alone."""


class Linen(Body):
    """Gives hidden states and its head, and takes noise."""

    def hidden(self, tokens, positions, segment_ids, *, deterministic, embed_noise=0.0):
        return self.states(tokens, positions, segment_ids, deterministic, embed_noise)

    def head(self):
        return self.out


class Nnx(nnx.Module):
    """Gives logits alone."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(V, D, rngs=rngs)
        self.places = nnx.Embed(LONGEST, D, rngs=rngs)
        self.qkv = nnx.Linear(D, 3 * D, rngs=rngs)
        self.out = nnx.Linear(D, V, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, tokens, positions, segment_ids, *, deterministic):
        x = self.embed(tokens) + self.places(positions)
        x = self.drop(x, deterministic=deterministic)
        q, k, v = jnp.split(self.qkv(x), 3, -1)
        return self.out(x + mix(q, k, v, positions, segment_ids))


@functools.cache
def made(kind):
    module = Linen() if kind == "linen" else Nnx(nnx.Rngs(0))
    return wrap(module, max_positions=LONGEST, dropout=False)


@pytest.fixture(params=["linen", "nnx"])
def kind(request):
    return request.param


EXAMPLES = toy.examples()


def test_rows_say_what_is_a_kernel(kind):
    model, params = made(kind)
    rows = model.table
    assert rows.keys() == params.keys()
    assert rows["embed.embedding"].names[0] == "vocab"
    assert rows["qkv.kernel"].is_kernel and not rows["qkv.bias"].is_kernel
    for name, row in rows.items():
        assert tuple(model.config.dims[a] for a in row.names) == params[name].shape
        assert len(set(row.names)) == len(row.names)
    if kind == "linen":
        assert rows["up.kernel"].axes == "embed -> mlp"
        assert (model.config.vocab, model.config.embed, model.chunked) == (V, D, True)
    else:
        assert rows["out.kernel"].outputs == ("vocab",)
        assert (model.config.vocab, model.config.embed, model.chunked) == (V, D, False)


def test_packed_is_unpacked(kind):
    model, params = made(kind)
    run = functools.partial(toy.loss_and_gradients, model=model, params_=params, loss="dft")
    toy.assert_same(run(toy.packed(EXAMPLES)), run(toy.batch(EXAMPLES)))


def test_left_padding_is_right_padding(kind):
    model, params = made(kind)
    run = functools.partial(toy.loss_and_gradients, model=model, params_=params, loss="dft")
    toy.assert_same(run(toy.batch(EXAMPLES, side="left")), run(toy.batch(EXAMPLES)))


def test_the_chunked_head_is_the_logits():
    model, params = made("linen")
    plain, same = wrap(LinenLogits(), {"params": unflatten_dict(params, sep=".")})
    assert same.keys() == params.keys()
    assert model.chunked and not plain.chunked
    columns = toy.batch(EXAMPLES)
    for hparams in ({}, dict(label_smoothing=0.1, z_loss_weight=0.1)):
        toy.assert_same(
            toy.loss_and_gradients(columns, model=model, params_=params, chunk=5, **hparams),
            toy.loss_and_gradients(columns, model=plain, params_=params, **hparams),
        )


def test_a_mesh_gives_what_one_device_does():
    model, params = made("linen")
    mesh = sharding.make_mesh(dict(fsdp=4, tensor=2))
    columns = toy.packed(EXAMPLES, shards=4)
    got = toy.loss_and_gradients(columns, model=model, params_=params, mesh=mesh)
    toy.assert_same(got, toy.loss_and_gradients(toy.batch(EXAMPLES), model=model, params_=params))


def trained(model, params, rows, names, steps=12, dropout=False):
    """Some steps on one batch; the losses and the state."""
    rate = 0.02
    tx = make_optimizer({k: rows[k] for k in names}, lambda _: rate)
    options = StepOptions()
    run = functools.partial(
        train_step,
        model=model,
        bound=toy.bound(),
        tx=tx,
        schedule=lambda _: rate,
        options=options,
        forward_options=ForwardOptions(head_chunk=32),
    )
    run = jax.jit(run, compiler_options=toy.QUICK)
    chosen = {k: params[k] for k in names}
    frozen = {k: v for k, v in params.items() if k not in names}
    state = TrainState(jnp.int32(0), chosen, frozen, tx.init(chosen), new_guard(options))
    batch = {k: jnp.asarray(v) for k, v in toy.packed(EXAMPLES).items()}
    losses = []
    for _ in range(steps):
        state, logged = run(state, batch)
        losses.append(float(logged["loss"]))
    return losses, state


def test_full_training_lowers_the_loss(kind):
    model, params = made(kind)
    losses, _ = trained(model, params, model.table, list(params))
    assert losses[-1] < 0.8 * losses[0]


def test_lora_by_regex_trains_adapters_alone(kind):
    model, params = made(kind)
    lora = Lora(rank=4, targets=r"(qkv|up|out)\.kernel")
    rows = lora_module.rows(model.table, lora)
    added = lora_module.add(params, model.table, model.config.dims, lora, jax.random.key(1))
    adapted = replace(model, lora=lora)
    whole = {**params, **added}
    columns = toy.batch(EXAMPLES)
    before = toy.loss_and_gradients(columns, model=model, params_=params, loss="dft")[0]
    assert toy.loss_and_gradients(columns, model=adapted, params_=whole, loss="dft")[0] == before
    losses, state = trained(adapted, whole, {**model.table, **rows}, list(added))
    assert losses[-1] < 0.95 * losses[0]
    assert set(state.opt_state[1][0].mu) == set(added)
    merged = lora_module.merge(state.merged(), model.table, lora)
    got = toy.loss_and_gradients(columns, model=model, params_=merged, loss="dft")[0]
    wanted = toy.loss_and_gradients(columns, model=adapted, params_=state.merged(), loss="dft")[0]
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_sampling_takes_the_likeliest_token_of_the_full_forward(kind):
    model, params = made(kind)
    prompts = [[3, 9, 4], [8, 1, 60, 22, 7]]
    for prompt, completion in zip(
        prompts, sample(model, params, prompts, max_tokens=5), strict=True
    ):
        whole = jnp.array([prompt + list(completion.tokens)])
        span = Span(jnp.arange(whole.size)[None], jnp.ones_like(whole))
        logits = model.logits(params, model.hidden(params, whole, span))
        best = jnp.argmax(logits[0, len(prompt) - 1 : -1], -1)
        np.testing.assert_array_equal(completion.tokens, best)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_dropout_follows_the_key(kind):
    module = Linen() if kind == "linen" else Nnx(nnx.Rngs(0))
    model, params = wrap(module, dropout=True)
    batch = {k: jnp.asarray(v) for k, v in toy.batch(EXAMPLES).items()}

    @functools.partial(jax.jit, static_argnums=1)
    def logps(seed, train):
        key = jax.random.key(seed) if train else None
        return forward(model, params, batch, key=key).logps

    assert model.is_random(Compute()) and not made(kind)[0].is_random(Compute())
    np.testing.assert_array_equal(logps(0, True), logps(0, True))
    assert not np.array_equal(logps(0, True), logps(1, True))
    assert not np.array_equal(logps(0, True), logps(0, False))


def test_neftune_where_the_module_takes_noise():
    batch = {k: jnp.asarray(v) for k, v in toy.batch(EXAMPLES).items()}
    options = ForwardOptions(neftune=5.0)

    def logps(kind, key):
        model, params = made(kind)
        run = jax.jit(lambda p: forward(model, p, batch, options=options, key=key).logps)
        return run(params)

    assert not np.array_equal(logps("linen", jax.random.key(0)), logps("linen", None))
    with pytest.raises(UserError, match="the flax module takes no `embed_noise`"):
        logps("nnx", jax.random.key(0))


def test_what_a_flax_module_cannot_do():
    model, params = made("linen")
    with pytest.raises(UserError, match="lora.dropout"):
        replace(model, lora=Lora(dropout=0.1))
    where = Span(jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), jnp.int32))
    with pytest.raises(UserError, match="model.dropout and model.remat"):
        model.hidden(params, jnp.zeros((1, 2), jnp.int32), where, compute=Compute(remat="full"))
    with pytest.raises(UserError, match="neither a flax.linen nor a flax.nnx Module"):
        wrap(print)
    with pytest.raises(UserError, match="flax module Dense"):
        wrap(nn.Dense(3))


class Tokenizer:
    chat_template = None


@pytest.fixture
def file(tmp_path, monkeypatch):
    text = """
import sys
from tests.models.test_flax_adapter import Linen, Tokenizer

def build():
    return {"module": Linen(), "tokenizer": Tokenizer(), "max_positions": 64}

def wrong():
    return {"module": Linen(), "tokeniser": None}

def bare():
    return Linen()
"""
    (tmp_path / "my_model.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_model", None)


def test_load_by_dotted_path(file):
    mesh = sharding.make_mesh(dict(fsdp=4, tensor=2))
    bundle = load("flax:my_model.build", mesh=mesh, param_dtype="bfloat16", chat_template="{{ 1 }}")
    assert bundle.tokenizer.chat_template == "{{ 1 }}"
    assert bundle.params["up.kernel"].sharding.shard_shape((D, 32)) == (D // 4, 16)
    assert bundle.params["up.kernel"].dtype == jnp.bfloat16
    assert bundle.params["down.kernel"].sharding.is_fully_replicated
    assert bundle.hf_config["architectures"] == ["Linen"]
    assert optax.tree.size(bundle.params) == optax.tree.size(made("linen")[1])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("flax:my_modell.build", "No module named 'my_modell'"),
        ("flax:my_model.make", "has no attribute 'make'"),
        ("flax:build", "model.source 'flax:build'"),
        ("flax:my_model.wrong", "unknown key 'tokeniser'; did you mean 'tokenizer'"),
        ("flax:my_model.bare", "returned a Linen, not a dict"),
    ],
)
def test_a_path_that_leads_nowhere(file, source, message):
    with pytest.raises(UserError, match=message):
        load(source)
