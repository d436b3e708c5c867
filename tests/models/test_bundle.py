"""Scalar heads against transformers' sequence classifiers, and new tokens' rows."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax import sharding
from ptjax.errors import UserError
from ptjax.export import export
from ptjax.forward import forward, last_scores
from ptjax.models.bundle import with_head
from ptjax.models.config_out import write_json
from ptjax.models.load import load
from ptjax.models.weights_out import write_safetensors
from tests.folders import files, write_model, write_tokenizer
from tests.golden import weights

GOLDEN = weights.load("heads")
NAMES = sorted(key.removesuffix("_scores") for key in GOLDEN if key.endswith("_scores"))


def write_classifier(folder, name="llama3", labels=1):
    """A golden classifier's folder, as transformers writes it."""
    config, shapes = GOLDEN[name]["config"], dict(GOLDEN[name]["shapes"])
    shapes["score.weight"] = (labels, shapes["score.weight"][1])
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"eos_token_id": 2})
    write_safetensors(weights.state_dict(shapes, config).items(), folder)
    write_tokenizer(folder)
    return folder


def scores(bundle):
    """The score of each golden row, at its last valid token."""
    valid = jnp.asarray(GOLDEN["valid"])[:, None]
    batch = {
        "tokens": jnp.asarray(GOLDEN["ids"])[:, None],
        "valid": valid,
        "mask": jnp.zeros(valid.shape, jnp.float32),
    }
    run = jax.jit(lambda params: forward(bundle.model, params, batch, fields=("scores",)).scores)
    return last_scores(run(bundle.params), valid)[:, 0]


@pytest.mark.parametrize("name", NAMES)
def test_a_classifier_scores_as_in_transformers_and_goes_out_as_it_came(tmp_path, name):
    folder = write_classifier(tmp_path / "in", name)
    bundle = load(str(folder))
    assert bundle.model.head == "score"
    np.testing.assert_allclose(scores(bundle), GOLDEN[f"{name}_scores"], atol=1e-4)
    export(bundle, tmp_path / "out")
    got = files(tmp_path / "out")
    del got["ptjax_export.json"]
    assert got == files(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_language_model_is_written_as_the_classifier_that_transformers_reads(tmp_path, name):
    """Its config.json says what transformers' own says of a classifier of one label."""
    write_model(tmp_path / "lm", name)
    bundle = load(str(tmp_path / "lm"), head="score", seed=3)
    assert "head" not in bundle.params
    export(bundle, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    wanted = GOLDEN[name]["config"]
    for key in ("architectures", "id2label", "label2id", "pad_token_id", "model_type"):
        assert config[key] == wanted[key], key
    again = load(str(tmp_path / "out"))
    assert again.model == bundle.model
    assert again.params.keys() == bundle.params.keys()
    assert set(again.dtypes) == set(GOLDEN[name]["shapes"])
    for key, leaf in bundle.params.items():
        np.testing.assert_array_equal(again.params[key], leaf, err_msg=key)


def test_a_new_head_is_drawn_from_the_seed_alone(tmp_path):
    write_model(tmp_path / "lm", "llama3")
    mesh = sharding.make_mesh(dict(fsdp=4, tensor=2))
    one, same, other = (
        np.asarray(load(str(tmp_path / "lm"), head="score", **given).params["score"])
        for given in ({"seed": 1}, {"seed": 1, "mesh": mesh}, {"seed": 2})
    )
    assert one.shape == (48, 1)
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.01
    np.testing.assert_allclose(one.std() * 48**0.5, 1.0, atol=0.3)


def test_a_head_stays_in_float32(tmp_path):
    write_model(tmp_path / "lm", "llama3", "bfloat16")
    bundle = load(str(tmp_path / "lm"), head="score", param_dtype="bfloat16")
    assert bundle.params["score"].dtype == jnp.float32
    assert bundle.params["embed"].dtype == jnp.bfloat16
    export(bundle, tmp_path / "out")
    again = load(str(tmp_path / "out"), param_dtype="bfloat16")
    np.testing.assert_array_equal(again.params["score"], bundle.params["score"])


def test_a_reward_model_stays_one(tmp_path):
    folder = write_classifier(tmp_path / "rm")
    same = load(str(folder), head="score", seed=5)
    np.testing.assert_array_equal(same.params["score"], load(str(folder)).params["score"])
    with pytest.raises(UserError, match=r"rm is a reward model: it scores text .* made from"):
        load(str(folder), head="lm")
    with pytest.raises(UserError, match="unknown 'scores'; did you mean 'score'"):
        load(str(folder), head="scores")


def test_a_classifier_of_several_labels(tmp_path):
    folder = write_classifier(tmp_path / "rm", labels=3)
    with pytest.raises(UserError, match="a classifier of 3 labels; a reward model has one"):
        load(str(folder))


@pytest.mark.parametrize(
    ("tokens", "pad"),
    [
        (dict(pad_token="<pad>"), "<pad>"),
        (dict(pad_token="</s>", unk_token="?"), "?"),
        (dict(pad_token="</s>"), "<s>"),
        (dict(pad_token="</s>", bos_token="</s>"), None),
    ],
)
def test_padding_never_ends_a_text(tmp_path, tokens, pad, caplog):
    """transformers reads the score before the padding: an end token there would be passed over."""
    write_model(tmp_path / "lm", "llama3")
    bundle = load(str(tmp_path / "lm"))
    for name, token in tokens.items():
        setattr(bundle.tokenizer, name, token)
    with caplog.at_level(logging.WARNING):
        scorer = with_head(bundle, "score")
    if pad is None:
        assert scorer.hf_config["pad_token_id"] is None
        assert "lm: no token to pad with" in caplog.text
        return
    assert scorer.tokenizer.pad_token == pad
    assert scorer.hf_config["pad_token_id"] == scorer.tokenizer.convert_tokens_to_ids(pad)


@pytest.mark.parametrize("sizes", [None, dict(fsdp=4, tensor=2)])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_new_tokens_in_rows_that_a_padded_vocabulary_has_to_spare(tmp_path, count, sizes):
    """96 tokens in a vocabulary of 99: the mean is over those 96, for rows there are and grown."""
    golden = weights.load("models/llama3")
    config = golden["config"] | {"vocab_size": 99}
    shapes = {k: [99, *s[1:]] if s[0] == 96 else s for k, s in golden["shapes"].items()}
    tensors = weights.state_dict(shapes, config)
    (tmp_path / "lm").mkdir()
    write_json(tmp_path / "lm" / "config.json", config)
    write_safetensors(tensors.items(), tmp_path / "lm")
    write_tokenizer(tmp_path / "lm")
    mesh = sharding.make_mesh(sizes) if sizes else None
    tokens = [f"<new{i}>" for i in range(count)]
    bundle = load(str(tmp_path / "lm"), special_tokens=tokens, mesh=mesh)
    assert bundle.model.config.vocab == bundle.hf_config["vocab_size"] == max(99, 96 + count)
    for name, old in (
        ("embed", tensors["model.embed_tokens.weight"]),
        ("head", tensors["lm_head.weight"]),
    ):
        got = np.asarray(bundle.params[name])
        got = got.T if name == "head" else got
        np.testing.assert_array_equal(got[:96], old[:96])
        new = np.broadcast_to(old[:96].mean(0), (count, 48))
        np.testing.assert_allclose(got[96 : 96 + count], new, atol=1e-6)
        np.testing.assert_array_equal(got[96 + count :], old[96 + count :])
