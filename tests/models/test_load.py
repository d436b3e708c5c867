"""`load` from a folder: what it gives, what it grows, what it refuses."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ptjax import sharding
from ptjax.errors import UserError
from ptjax.models.load import load
from ptjax.models.weights_out import write_safetensors
from tests.golden import weights

GOLDEN = weights.load("models/llama3")
TENSORS = weights.state_dict(GOLDEN["shapes"], GOLDEN["config"])
VOCAB = GOLDEN["config"]["vocab_size"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    words = {f"w{i}": i for i in range(VOCAB - 1)} | {"</s>": VOCAB - 1}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token="w0"
    ).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(GOLDEN["config"]))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, VOCAB - 1]}))
    write_safetensors(TENSORS.items(), folder)
    return folder


@pytest.fixture
def copy(source, tmp_path):
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_everything_of_a_folder(source):
    bundle = load(str(source))
    assert sorted(bundle.stop_ids) == [3, VOCAB - 1]
    assert bundle.hf_config["vocab_size"] == VOCAB
    assert bundle.dtypes["model.norm.weight"] == np.float32
    assert bundle.tokenizer("w1 w2")["input_ids"] == [1, 2]
    got = np.asarray(bundle.params["head"])
    assert got.T.tobytes() == TENSORS["lm_head.weight"].tobytes()


@pytest.mark.parametrize("sizes", [None, dict(fsdp=4, tensor=2)])
def test_new_tokens_get_the_mean_of_the_old_rows(source, sizes):
    mesh = sharding.make_mesh(sizes) if sizes else None
    bundle = load(str(source), special_tokens=("<new>", "<more>"), mesh=mesh)
    assert bundle.model.config.vocab == bundle.hf_config["vocab_size"] == VOCAB + 2
    assert bundle.tokenizer("<more>")["input_ids"] == [VOCAB + 1]
    for name, old, axis in (
        ("embed", TENSORS["model.embed_tokens.weight"], 0),
        ("head", TENSORS["lm_head.weight"].T, 1),
    ):
        grown = np.asarray(bundle.params[name])
        kept, new = np.split(grown, [VOCAB], axis=axis)
        np.testing.assert_array_equal(kept, old)
        mean = np.broadcast_to(old.mean(axis, keepdims=True), new.shape)
        np.testing.assert_allclose(new, mean, atol=1e-6)
        if mesh is not None:
            names = bundle.model.table[name].names
            assert bundle.params[name].sharding == sharding.named(names, grown.shape, mesh)


def test_bfloat16_parameters(source):
    bundle = load(str(source), param_dtype="bfloat16")
    assert {leaf.dtype for leaf in bundle.params.values()} == {jnp.dtype("bfloat16")}
    with pytest.raises(UserError, match="'float16' is neither float32 nor bfloat16"):
        load(str(source), param_dtype="float16")


def test_a_truncated_file(copy):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match="model.safetensors"):
        load(str(copy))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no config.json; is this a model's folder"),
        ("{", "config.json"),
        ("[]", "holds a list, not an object"),
        ('{"model_type": "gpt_neo"}', "model_type 'gpt_neo' is not supported"),
    ],
)
def test_a_config_that_is_none(copy, text, message):
    if text is None:
        (copy / "config.json").unlink()
    else:
        (copy / "config.json").write_text(text)
    with pytest.raises(UserError, match=message) as found:
        load(str(copy))
    assert str(copy) in str(found.value) and "\n" not in str(found.value)
