"""A Gemma 3 with a vision tower: its language part is loaded, and leaves as a model of its own."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.errors import UserError
from ptjax.export import export
from ptjax.models.decoder import Decoder
from ptjax.models.load import load
from ptjax.models.weights import open_safetensors
from ptjax.models.weights_out import write_safetensors
from ptjax.ops.span import Span
from ptjax.workdir import load_workdir
from tests import toy
from tests.folders import LORA, adapted, write_run, write_tokenizer
from tests.golden import weights

GOLDEN = weights.load("composite")
TENSORS = weights.state_dict(GOLDEN["shapes"], GOLDEN["config"])
THEIRS = "language_model.model."
STYLES = {
    "the hub's": TENSORS,
    "the module's": {
        name.replace(THEIRS, "model.language_model.")
        if name.startswith(THEIRS)
        else f"model.{name}": tensor
        for name, tensor in TENSORS.items()
    },
}


def write(folder, tensors=TENSORS, **changes):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(GOLDEN["config"] | changes))
    write_safetensors(tensors.items(), folder)
    write_tokenizer(folder)
    return folder


@pytest.mark.parametrize("style", STYLES)
def test_logits_are_those_of_the_whole(tmp_path, style):
    bundle = load(str(write(tmp_path / "in", STYLES[style])))
    ids, positions, valid = (jnp.asarray(GOLDEN[name]) for name in ("ids", "positions", "valid"))
    span = Span(positions, valid.astype(jnp.int32))

    def logits(params):
        return bundle.model.logits(params, bundle.model.hidden(params, ids, span))

    got = jax.jit(logits, compiler_options=toy.QUICK)(bundle.params)
    got = np.where(GOLDEN["valid"][..., None], got, 0)
    assert np.abs(got - GOLDEN["logits"]).max() < 2e-4
    assert np.abs(GOLDEN["logits"]).max() > 0.5


def test_it_is_exported_as_the_text_model(tmp_path):
    source = write(tmp_path / "in", eos_token_id=[1, 5], torch_dtype="float32")
    export(str(source), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "gemma3_text"
    assert config["architectures"] == ["Gemma3ForCausalLM"]
    assert "vision_config" not in config and "text_config" not in config
    written = open_safetensors(tmp_path / "out")
    assert set(written.specs()) == set(weights.load("models/gemma3")["shapes"])
    for name in written.specs():
        wanted = TENSORS[THEIRS + name.removeprefix("model.")]
        assert written.read(name).tobytes() == wanted.tobytes()
    one, other = load(str(source)), load(str(tmp_path / "out"))
    assert one.model == other.model == Decoder(one.model.config)
    assert (one.part_of, other.part_of) == ("gemma3", None)


def test_an_adapter_asks_for_a_base_that_it_fits(tmp_path):
    bundle = adapted(write(tmp_path / "in"))
    write_run(tmp_path / "run", bundle, tmp_path / "in", [k for k in bundle.params if "lora" in k])
    assert load_workdir(tmp_path / "run").part_of == "gemma3"
    for source in (bundle, str(tmp_path / "run")):
        with pytest.raises(UserError, match="language part of a gemma3 .* name that folder"):
            export(source, tmp_path / "adapter", kind="adapter")
    done = export(str(tmp_path / "run"), tmp_path / "adapter", kind="adapter", base="text/model")
    assert done.tensors == 2 * 3 * bundle.model.config.layers and LORA.targets.count("|") == 2


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        (dict(text_config=None), {}, "no text_config, which a gemma3 model needs"),
        (dict(quantization_config={"bits": 4}), {}, "quantised checkpoints are not supported"),
        ({}, {"audio_tower.weight": np.zeros(2)}, "'audio_tower.weight' belongs to no parameter"),
        ({}, {THEIRS + "extra": np.zeros(2)}, "'model.extra' belongs to no parameter"),
    ],
)
def test_what_is_refused(tmp_path, changes, more, message):
    folder = write(tmp_path / "in", TENSORS | more, **changes)
    with pytest.raises(UserError, match=message) as found:
        load(str(folder))
    assert str(folder) in str(found.value)
