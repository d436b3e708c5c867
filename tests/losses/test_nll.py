"""Supervised losses on arrays: TRL's values and gradients, finite differences, invariances."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.algorithms.sft import SFT
from ptjax.forward import ForwardOptions, forward
from ptjax.losses.nll import dft, nll, smoothed_nll, z_loss
from ptjax.models.compute import Compute
from ptjax.models.decoder import Decoder
from ptjax.models.heads import Head
from ptjax.ops.logprobs import token_stats
from ptjax.types import Mean, Outputs
from tests import toy
from tests.golden import weights

GOLDEN = weights.load("losses")


def stats(logits, fields, linear=None):
    """Columns of [B, T] from the logits that predict them, through the head's own code."""
    size = logits.shape[-1]
    scored = jnp.asarray(GOLDEN["mask"])
    values = token_stats(
        logits[:, :-1].reshape(1, -1, size),
        jnp.eye(size, dtype=logits.dtype),
        jnp.asarray(GOLDEN["ids"])[:, 1:].reshape(1, -1),
        scored[:, 1:].reshape(1, -1),
        fields=fields,
        chunk=7,
        linear=None if linear is None else linear[:, 1:].reshape(1, -1),
    )
    shape = (scored.shape[0], scored.shape[1] - 1)
    return {k: jnp.pad(v.reshape(shape), ((0, 0), (1, 0))) for k, v in values.items()}


@pytest.mark.parametrize("case", GOLDEN["cases"])
def test_values_and_gradients_are_trls(case):
    settings = dict(GOLDEN["cases"][case])
    settings["z_loss_weight"] = settings.pop("z_loss", 0.0)
    bound = SFT.bind(settings, "hparams")
    batch = {
        "mask": jnp.asarray(GOLDEN["mask"], jnp.float32)[:, None],
        "weights": jnp.ones((len(GOLDEN["mask"]), 1)),
    }

    @jax.jit
    def loss(logits):
        linear = bound.linear(batch)[:, 0] if bound.linear else None
        outputs = Outputs(**{k: v[:, None] for k, v in stats(logits, bound.needs, linear).items()})
        terms, metrics = bound.terms(outputs, batch)
        return sum(c * mean.value() for c, mean in terms.values()), (terms, metrics)

    value, grads = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(GOLDEN["logits"]))
    value, (terms, metrics) = value
    total, mean = GOLDEN["values"][case]
    np.testing.assert_allclose(value, mean, rtol=1e-5)
    np.testing.assert_allclose(sum(c * m.total for c, m in terms.values()), total, rtol=1e-5)
    np.testing.assert_allclose(grads, GOLDEN[f"grad_{case}"], atol=1e-6)
    np.testing.assert_allclose(metrics["nll"].value(), GOLDEN["values"]["nll"][1], rtol=1e-5)


def test_every_column_is_trls():
    fields = ("logps", "entropy", "correct", "logsumexp", "mean_logps")
    got = jax.jit(lambda logits: stats(logits, fields))(jnp.asarray(GOLDEN["logits"]))
    for name in fields:
        np.testing.assert_allclose(got[name], GOLDEN[name], atol=3e-6, rtol=1e-6, err_msg=name)
    assert 0 < got["correct"].sum() < GOLDEN["mask"].sum()


def losses(logits, mask, **_):
    """Every loss as a function of raw logits, in whatever precision these have."""
    logps = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(logps, GOLDEN["ids"][:, 1:, None], -1)[..., 0]
    normaliser = jax.nn.logsumexp(logits, -1)
    values = {
        "nll": nll(picked),
        "smoothed": smoothed_nll(picked, jnp.mean(logps, -1), label_smoothing=0.1),
        "dft": dft(picked),
        "z": z_loss(normaliser),
    }
    return {name: Mean.of(value, mask).value() for name, value in values.items()}


@pytest.mark.parametrize("name", ["nll", "smoothed", "z"])
def test_finite_differences_in_float64(name):
    with jax.enable_x64(True):
        logits = jnp.asarray(GOLDEN["logits"][:, :-1], jnp.float64)
        mask = jnp.asarray(GOLDEN["mask"][:, 1:], jnp.float64)
        loss = jax.jit(lambda x: losses(x, mask)[name])
        grads = jax.jit(jax.grad(loss))(logits)
        state = np.random.RandomState(0)
        for _ in range(3):
            way = jnp.asarray(state.standard_normal(logits.shape))
            slope = (loss(logits + 1e-5 * way) - loss(logits - 1e-5 * way)) / 2e-5
            np.testing.assert_allclose(jnp.sum(grads * way), slope, rtol=1e-8)


def test_dft_freezes_its_weight():
    """The gradient is that of Σ w · nll with w = p held where it was, not that of -p log p."""
    with jax.enable_x64(True):
        logps = jnp.log(jnp.array([0.9, 0.5, 0.01]))
        grads = jax.grad(lambda x: jnp.sum(dft(x)))(logps)
        np.testing.assert_allclose(grads, -jnp.exp(logps))
        np.testing.assert_allclose(dft(logps), -jnp.exp(logps) * logps)


def test_order_padding_and_parts_do_not_matter():
    mask = GOLDEN["mask"][:, 1:].astype(np.float32)
    logps = np.asarray(GOLDEN["logps"][:, 1:])
    whole = Mean.of(nll(jnp.asarray(logps)), jnp.asarray(mask))
    order = np.random.RandomState(0).permutation(mask.size)
    shuffled = Mean.of(nll(jnp.asarray(logps.ravel()[order])), jnp.asarray(mask.ravel()[order]))
    np.testing.assert_allclose(shuffled.value(), whole.value(), rtol=1e-6)
    padded = np.pad(logps, ((0, 2), (3, 4)), constant_values=np.nan)
    outer = Mean.of(nll(jnp.asarray(padded)), jnp.asarray(np.pad(mask, ((0, 2), (3, 4)))))
    np.testing.assert_allclose(outer.value(), whole.value(), rtol=1e-6)
    rows = [Mean.of(nll(jnp.asarray(a)), jnp.asarray(m)) for a, m in zip(logps, mask, strict=True)]
    np.testing.assert_allclose(sum(rows[1:], rows[0]).value(), whole.value(), rtol=1e-6)


@pytest.mark.parametrize(("alpha", "tokens", "width", "bound"), GOLDEN["neftune"])
def test_neftunes_noise_is_as_wide_as_transformers(alpha, tokens, width, bound):
    """The half-width that `forward` hands the model, at each real token."""
    tokens, width = int(tokens), int(width)
    widths = []

    class Spy(Decoder):
        def hidden(self, params, ids, span, *, compute, key, noise):
            widths.append(noise)
            return jnp.zeros((*ids.shape, 4))

        def projection(self, params):
            return Head(jnp.zeros((4, 8)), False, None)

    spy = Spy(replace(toy.CONFIG, embed=width))
    columns = toy.batch([toy.Example(np.arange(tokens), np.zeros(tokens), 1.0)], tokens + 3)
    options = ForwardOptions(Compute(), neftune=float(alpha))
    batch = {k: jnp.asarray(v) for k, v in columns.items()}

    @jax.jit
    def noise(batch):
        forward(spy, {}, batch, options=options, key=jax.random.key(0))
        forward(spy, {}, batch, options=options, key=None)
        return widths[0]

    wanted = np.where(np.arange(tokens + 3) < tokens, bound, 0)[None]
    np.testing.assert_allclose(noise(batch), wanted, rtol=1e-5)
    assert widths[1] is None
