"""An exported folder is what transformers and safetensors read, by their own code."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from transformers import AutoConfig, AutoTokenizer

from ptjax.export import export
from ptjax.models.load import load
from ptjax.ops.span import Span
from tests import toy
from tests.folders import TEMPLATE, adapted, write_model
from tests.golden import weights

FAMILIES = ("llama3", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "smollm3", "olmo2")
CHAT = [{"role": "user", "content": "Hello you"}, {"role": "assistant", "content": "Ahoy"}]


def shapes_and_dtypes(folder):
    """Of every tensor, by safetensors' reader, over all shards."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(path, "np") as file:
            assert file.metadata() == {"format": "pt"}
            for name in file.keys():
                part = file.get_slice(name)
                found[name] = (part.get_shape(), part.get_dtype())
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_config_and_tensors_are_those_of_the_architecture(tmp_path, family):
    """Those that `save_pretrained` wrote in torch, in another dtype and in shards."""
    golden = weights.load(f"models/{family}")
    write_model(tmp_path / "in", family)
    export(str(tmp_path / "in"), tmp_path / "out", dtype="bfloat16", max_shard_bytes=50_000)
    wanted = {name: (list(shape), "BF16") for name, shape in golden["shapes"].items()}
    assert shapes_and_dtypes(tmp_path / "out") == wanted
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == wanted.keys()
    assert index["metadata"]["total_size"] == 2 * sum(map(np.prod, golden["shapes"].values()))
    config = AutoConfig.from_pretrained(tmp_path / "out")
    kept = ("transformers_version", "dtype", "_name_or_path")
    one, other = (
        {key: value for key, value in given.to_dict().items() if key not in kept}
        for given in (config, AutoConfig.for_model(**golden["config"]))
    )
    assert one == other
    assert str(config.dtype).removeprefix("torch.") == "bfloat16"
    assert config.architectures == golden["config"]["architectures"]


def test_the_tokenizer_is_that_of_the_model(tmp_path):
    write_model(tmp_path / "in")
    bundle = load(str(tmp_path / "in"), special_tokens=("<tool>",))
    export(bundle, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == TEMPLATE
    text = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert text == "user:Hello you</s>assistant:Ahoy</s>"
    assert tokenizer(text + "<tool>")["input_ids"] == bundle.tokenizer(text + "<tool>")["input_ids"]
    assert tokenizer.convert_tokens_to_ids("<tool>") == 96
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("</s>", "<pad>")
    assert AutoConfig.from_pretrained(tmp_path / "out").vocab_size == 97


@pytest.mark.parametrize("family", FAMILIES)
def test_torch_gives_the_same_logits(tmp_path, family):
    """Where torch is installed beside jax; CONTRIBUTING.md has the way where it is not."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    write_model(tmp_path / "in", family)
    bundle = adapted(tmp_path / "in")
    export(bundle, tmp_path / "out")
    model, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out",
        dtype=torch.float32,
        attn_implementation="eager",
        output_loading_info=True,
    )
    assert not any(report.values()), report
    ids = jnp.asarray(weights.load(f"models/{family}")["ids"][:1])
    with torch.no_grad():
        wanted = model.eval()(torch.tensor(np.array(ids), dtype=torch.long)).logits.numpy()
    span = Span(jnp.arange(ids.shape[1])[None], jnp.ones(ids.shape, jnp.int32))

    def logits(params):
        return bundle.model.logits(params, bundle.model.hidden(params, ids, span))

    got = jax.jit(logits, compiler_options=toy.QUICK)(bundle.params)
    np.testing.assert_allclose(got, wanted, atol=2e-4)
    plain = jax.jit(logits, compiler_options=toy.QUICK)(load(str(tmp_path / "in")).params)
    assert np.abs(np.asarray(plain) - wanted).max() > 1e-2
