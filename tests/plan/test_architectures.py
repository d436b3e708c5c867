"""Architectures by name have the sizes of the public weights."""

import json
import math

import pytest

from ptjax.errors import UserError
from ptjax.models import spec
from ptjax.models.decoder import Decoder
from ptjax.plan.architectures import ARCHITECTURES, architecture, registered
from tests import tiny

PARAMETERS = {
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-30b-a3b": 30_532_122_624,
    "mixtral-8x7b": 46_702_792_704,
    "gemma3-1b": 999_885_952,
    "smollm2-135m": 134_515_008,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_are_as_many_as_the_public_weights_have(name):
    model = Decoder(architecture(name))
    dims = model.config.dims
    assert sum(math.prod(spec.shape(row, dims)) for row in model.table.values()) == PARAMETERS[name]


def test_gemma_has_a_global_layer_after_five_local_ones():
    windows = architecture("gemma3-1b").window
    assert [window == 512 for window in windows[:7]] == [True] * 5 + [False, True]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama3.1-8b"),
        ("hf:Qwen/Qwen3-0.6B-Base", "qwen3-0.6b"),
        ("google/gemma-3-1b-it", "gemma3-1b"),
        ("smollm2-135m-instruct", "smollm2-135m"),
        ("Qwen/Qwen3-8B", None),
    ],
)
def test_a_hub_id_is_known_by_its_name(source, name):
    assert registered(source) == name


def test_a_folder_needs_its_config_alone(tmp_path):
    made = tiny.write_model(tmp_path / "model")
    for file in made.glob("*"):
        if file.name != "config.json":
            file.unlink()
    assert architecture(str(made)).embed == 32
    assert architecture(str(tmp_path)).embed == 32


def test_an_unknown_name_is_one_line():
    with pytest.raises(UserError, match="a plan downloads nothing.*did you mean 'qwen3-0.6b'"):
        architecture("qwen3-0.8b")


@pytest.mark.parametrize(
    ("text", "said"),
    [("[]", "holds a list, not an object"), ("{", "is not JSON"), (None, "no config.json")],
)
def test_a_config_that_cannot_be_read_is_one_line(text, said, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=said):
        architecture(str(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [dict(num_key_value_heads=3), dict(num_hidden_layers=0)],
    ids=str,
)
def test_heads_and_layers_that_cannot_be_are_one_line(changes, tmp_path):
    made = tiny.write_model(tmp_path / "model")
    shape = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps(shape | changes))
    with pytest.raises(UserError, match="there is one of each at least, and key heads divide"):
        architecture(str(made))
