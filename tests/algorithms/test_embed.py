"""Contrastive fine-tuning: what is measured, and texts that are their own positive."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.algorithms import METHODS
from ptjax.errors import UserError
from ptjax.forward import ForwardOptions, forward
from ptjax.models.compute import Compute
from ptjax.prepare import prepare
from ptjax.types import Outputs
from tests import tiny, toy


def test_what_is_measured():
    vectors = jnp.array([[[1.0, 0], [1, 0]], [[0, 1], [0.6, 0.8]], [[1, 1], [0, 0]]])
    weights = jnp.array([[1.0, 1], [1, 1], [1, 0]])
    bound = METHODS["embed"].bind({"temperature": 0.5}, "hparams")
    terms, metrics = bound.terms(Outputs(embedding=vectors), {"weights": weights})
    first, second = np.array([1, 0.6]) / 0.5, np.array([0.8, 0]) / 0.5
    wanted = np.mean([np.log(np.exp(x).sum()) - x[0] for x in (first, second)])
    assert terms["loss"][1].value() == pytest.approx(wanted, rel=1e-5)
    assert metrics["accuracy"].value() == 1
    assert metrics["similarity/positive"].value() == pytest.approx(0.9)
    assert metrics["similarity/others"].value() == pytest.approx(0.3)


def test_a_text_as_its_own_positive_needs_dropout(tmp_path):
    folder = tiny.write(tmp_path)
    (folder / "texts.jsonl").write_text('{"text": "sea and sky"}\n{"text": "tide"}\n' * 8)

    def config(**changes):
        given = {"data.sources[0].path": str(folder / "texts.jsonl"), "data.validation": None}
        return tiny.tiny_config(folder, method="embed", **(given | changes))

    with pytest.raises(UserError, match="model.dropout = 0: texts that are their own positive"):
        prepare(config())
    assert prepare(config(**{"model.dropout": 0.1})).pipeline.examples.has_twins()
    held_out = [{"path": str(folder / "texts.jsonl")}]
    with pytest.raises(UserError, match="data.validation: held-out texts that are their own pos"):
        prepare(config(**{"model.dropout": 0.1, "data.validation": held_out}))


@pytest.mark.parametrize("is_packed", [False, True])
def test_twins_differ_by_dropout_alone(is_packed):
    """A row's two equal texts: other embeddings under a key, equal ones without."""
    twins = [one._replace(weight=1.0) for one in toy.examples(4) for _ in range(2)]
    flat = toy.packed(twins) if is_packed else toy.batch(twins)
    pack = {"pack": flat.pop("pack")} if is_packed else {}
    batch = {name: x.reshape(4, 2, *x.shape[2:]) for name, x in flat.items()} | pack
    batch = {name: jnp.asarray(column) for name, column in batch.items()}
    options = ForwardOptions(Compute(dropout=0.1), pooling="mean")

    @functools.partial(jax.jit, compiler_options=toy.QUICK)
    def embedded(key):
        return forward(
            toy.MODEL, toy.params(), batch, fields=("embedding",), options=options, key=key
        ).embedding

    first, second = np.moveaxis(np.asarray(embedded(None)), 1, 0)
    np.testing.assert_allclose(first, second, atol=1e-5)
    noisy = np.asarray(embedded(jax.random.key(0)))
    assert (np.abs(noisy[:, 0] - noisy[:, 1]).max(-1) > 0.01).all()
    again = np.asarray(embedded(jax.random.key(1)))
    assert (np.abs(noisy - again).max(-1) > 0.01).all()
