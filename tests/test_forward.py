"""From a batch of columns to Outputs: against the plainest way to say the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.forward import ForwardOptions, forward
from ptjax.ops.attention import Span
from ptjax.ops.logprobs import FIELDS
from ptjax.types import Outputs
from tests import toy

EXAMPLES = toy.examples()


OPTIONS = ForwardOptions(head_chunk=8)


@functools.partial(jax.jit, static_argnames=("fields", "options"))
def run(batch, fields=FIELDS, options=OPTIONS):
    return forward(toy.MODEL, toy.params(), batch, fields=fields, options=options)


def outputs(columns, **settings):
    return run({k: jnp.asarray(v) for k, v in columns.items()}, **settings)


@jax.jit
def logits_of(tokens):
    span = Span(jnp.arange(tokens.size)[None], jnp.ones((1, tokens.size), jnp.int32))
    return toy.MODEL.logits(toy.params(), toy.MODEL.hidden(toy.params(), tokens[None], span))[0]


@pytest.fixture(scope="module")
def packed():
    return outputs(toy.packed(EXAMPLES))


def test_entry_t_is_about_token_t(packed):
    for row, example in enumerate(EXAMPLES[:3]):
        length = len(example.tokens)
        padded = np.zeros(12, np.int32)
        padded[:length] = example.tokens
        logits = np.asarray(logits_of(jnp.asarray(padded)), np.float64)[: length - 1]
        normaliser = np.log(np.exp(logits).sum(-1))
        logps = logits - normaliser[:, None]
        mask = example.mask[1:]
        wanted = {
            "logps": logps[np.arange(length - 1), example.tokens[1:]],
            "logsumexp": normaliser,
            "mean_logps": logps.mean(-1),
            "entropy": -(np.exp(logps) * logps).sum(-1),
            "correct": logits.argmax(-1) == example.tokens[1:],
        }
        for name, value in wanted.items():
            got = getattr(packed, name)[row, 0, :length]
            np.testing.assert_allclose(got[1:], value * mask, atol=1e-5, err_msg=name)
            assert got[0] == 0


def test_nothing_stands_where_the_mask_is_zero(packed):
    hidden = toy.batch(EXAMPLES)["mask"] == 0
    for name in FIELDS:
        value = getattr(packed, name)
        assert value.dtype == jnp.float32 and value.shape == hidden.shape
        assert not np.asarray(value)[hidden].any()


def test_packed_outputs_are_unpacked_ones(packed):
    plain = outputs(toy.batch(EXAMPLES))
    for name in FIELDS:
        got, wanted = getattr(packed, name), getattr(plain, name)
        np.testing.assert_allclose(got, wanted, atol=1e-5, err_msg=name)


def test_only_what_is_asked_for_is_there():
    found = outputs(toy.batch(EXAMPLES), fields=("entropy",))
    assert [name for name, value in found._asdict().items() if value is not None] == ["entropy"]
    assert found._fields == Outputs._fields


def test_completions_have_an_axis_of_their_own(packed):
    """[B, N, T] with N = 2 is [2B, 1, T], packed or not."""
    columns = toy.packed(EXAMPLES)
    paired = {k: v if k == "pack" else v.reshape(4, 2, *v.shape[2:]) for k, v in columns.items()}
    got = outputs(paired, fields=("logps",)).logps
    assert got.shape == (4, 2, 12)
    np.testing.assert_allclose(got.reshape(8, 1, 12), packed.logps, atol=1e-6)


def test_temperature_divides_the_logits():
    options = ForwardOptions(head_chunk=8, temperature=0.5)
    got = outputs(toy.batch(EXAMPLES), fields=("logsumexp",), options=options).logsumexp
    tokens = EXAMPLES[0].tokens
    wanted = jax.nn.logsumexp(logits_of(jnp.asarray(tokens, jnp.int32)) / 0.5, -1)[:-1]
    np.testing.assert_allclose(got[0, 0, 1:], wanted * EXAMPLES[0].mask[1:], atol=1e-5)
