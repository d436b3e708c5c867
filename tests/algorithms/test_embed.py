"""Contrastive fine-tuning: what is measured, and texts that are their own positive."""

import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.algorithms import METHODS
from ptjax.errors import UserError
from ptjax.prepare import prepare
from ptjax.types import Outputs
from tests import tiny


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
        changes |= {"data.sources[0].path": str(folder / "texts.jsonl"), "data.validation": None}
        return tiny.tiny_config(folder, method="embed", **changes)

    with pytest.raises(UserError, match="model.dropout = 0: texts that are their own positive"):
        prepare(config())
    assert prepare(config(**{"model.dropout": 0.1})).pipeline.examples.has_twins()
