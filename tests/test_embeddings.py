"""Texts as vectors: the tokens that are trained, alone as together, pooled as the run was."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import ptjax
from ptjax.errors import UserError
from ptjax.models.load import load
from ptjax.ops.span import Span
from ptjax.workdir import RunBundle
from tests import tiny

TEXTS = ["the sky is blue", "tea", "red green and tea, two cold ships of stone"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return load(str(tiny.write_model(tmp_path_factory.mktemp("model"))))


def by_hand(bundle, text, pooling):
    ids = [*bundle.tokenizer.encode(text), bundle.tokenizer.eos_token_id]
    span = Span(jnp.arange(len(ids))[None], jnp.ones((1, len(ids)), jnp.int32))
    hidden = bundle.model.hidden(bundle.params, jnp.array([ids]), span)[0]
    vector = np.asarray(hidden[-1] if pooling == "last" else hidden.mean(0))
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_vector_is_of_the_text_and_its_end_as_the_run_pooled(bundle, pooling):
    fields = {f.name: getattr(bundle, f.name) for f in dataclasses.fields(bundle)}
    found = ptjax.embed(RunBundle(**fields, pooling=pooling), TEXTS, batch_size=2)
    wanted = [by_hand(bundle, text, pooling) for text in TEXTS]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_array_equal(found, ptjax.embed(bundle, TEXTS, pooling=pooling, batch_size=2))


def test_what_cannot_be_embedded_is_one_line(bundle):
    with pytest.raises(UserError, match="text 1: it is empty"):
        ptjax.embed(bundle, ["tea", ""])
    with pytest.raises(UserError, match="text 0 has .* tokens, more than the model's 128 pos"):
        ptjax.embed(bundle, ["tea " * 200])
    with pytest.raises(UserError, match="pooling 'men'; did you mean 'mean'"):
        ptjax.embed(bundle, TEXTS, pooling="men")
