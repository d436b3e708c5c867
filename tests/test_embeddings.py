"""Texts as vectors: the tokens that are trained, alone as together, pooled as the run was."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ptjax
from ptjax.errors import UserError
from ptjax.models.load import load
from ptjax.ops.span import Span
from ptjax.workdir import RunBundle
from tests import tiny, toy

TEXTS = ["blue sky", "tea", "two ships"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return load(str(tiny.write_model(tmp_path_factory.mktemp("model"))))


def by_hand(bundle, text, pooling):
    ids = [*bundle.tokenizer.encode(text), bundle.tokenizer.eos_token_id]
    span = Span(jnp.arange(len(ids))[None], jnp.ones((1, len(ids)), jnp.int32))
    run = jax.jit(bundle.model.hidden, compiler_options=toy.QUICK)
    hidden = run(bundle.params, jnp.array([ids]), span)[0]
    vector = np.asarray(hidden[-1] if pooling == "last" else hidden.mean(0))
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_vector_is_of_the_text_and_its_end_as_the_run_pooled(bundle, pooling):
    fields = {f.name: getattr(bundle, f.name) for f in dataclasses.fields(bundle)}
    found = ptjax.embed(RunBundle(**fields, pooling=pooling), TEXTS, batch_size=2)
    np.testing.assert_allclose(found[2], by_hand(bundle, TEXTS[2], pooling), atol=1e-5)
    for vector, text in zip(found, TEXTS, strict=True):
        alone = ptjax.embed(bundle, [text], pooling=pooling, batch_size=2)
        np.testing.assert_allclose(alone, vector[None], atol=1e-6)
    assert (found @ found.T)[~np.eye(3, dtype=bool)].max() < 0.999


def test_what_cannot_be_embedded_is_one_line(bundle):
    with pytest.raises(UserError, match="text 1: it is empty"):
        ptjax.embed(bundle, ["tea", ""])
    with pytest.raises(UserError, match="text 0 has .* tokens, more than the model's 128 pos"):
        ptjax.embed(bundle, ["tea " * 200])
    with pytest.raises(UserError, match="one text is given; a list of texts is expected"):
        ptjax.embed(bundle, "tea")
    with pytest.raises(UserError, match="pooling 'men'; did you mean 'mean'"):
        ptjax.embed(bundle, TEXTS, pooling="men")
