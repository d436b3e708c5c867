"""Small models as folders of the Hugging Face layout, and runs' workdirs, written by hand."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ptjax.checkpoint import Checkpoints
from ptjax.config import to_json
from ptjax.config.defaults import defaults
from ptjax.models import lora as lora_module
from ptjax.models.fingerprint import fingerprint
from ptjax.models.load import load
from ptjax.models.lora import Lora
from ptjax.models.weights_out import write_safetensors
from ptjax.workdir import write_model_files
from tests.golden import weights

TEMPLATE = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '</s>' }}{% endfor %}"
LORA = Lora(rank=2, alpha=3.0, dropout=0.1, targets=r"layers\.(q|o|up)")
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def write_tokenizer(folder):
    """A tokenizer of 96 tokens, one a printable character, with a chat template."""
    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2} | {chr(32 + i): 3 + i for i in range(93)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token=" "))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(str(folder))


def write_model(folder, name="llama3", dtype="float32", **written):
    """A model of the golden files, its weights those of `weights.state_dict`; returns them."""
    golden = weights.load(f"models/{name}")
    folder.mkdir(parents=True)
    config = golden["config"] | {"dtype": dtype}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    generation = {"bos_token_id": 1, "do_sample": True, "eos_token_id": [2, 5]}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    tensors = {
        key: tensor.astype(DTYPES[dtype])
        for key, tensor in weights.state_dict(golden["shapes"], golden["config"]).items()
    }
    write_safetensors(tensors.items(), folder, **written)
    write_tokenizer(folder)
    return tensors


def adapted(folder, lora=LORA, **options):
    """A loaded model with adapters that do something."""
    bundle = load(str(folder), **options)
    model = bundle.model
    leaves = lora_module.add(bundle.params, model.table, model.config.dims, lora, jax.random.key(0))
    leaves = {name: leaf + 0.01 for name, leaf in leaves.items()}
    return replace(bundle, model=replace(model, lora=lora), params={**bundle.params, **leaves})


def write_run(workdir, bundle, source, trained, *, steps=(3,), ema=False, **model):
    """A run's workdir as training leaves it; the trained leaves of step n are multiplied by n."""
    config = defaults()
    with config.ignore_type():
        config.model.update({"source": str(source), **model})
    write_model_files(bundle, workdir / "model")
    (workdir / "config.json").write_text(to_json(config, indent=1))
    frozen = {name: leaf for name, leaf in bundle.params.items() if name not in trained}
    with Checkpoints(workdir, keep=9) as checkpoints:
        for step in steps:
            params = {name: bundle.params[name] * step for name in trained}
            state = {"params": params, "step": jnp.int32(step), "opt_state": {"mu": params}}
            if ema:
                state["ema"] = jax.tree.map(lambda leaf: leaf + 1, params)
            checkpoints.save(step, state, {"frozen": fingerprint(frozen)}, {})


def files(folder):
    """{name: bytes} of a folder's files."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
