"""Configs of decoders: rotary frequencies, windows, and what is refused."""

import math

import pytest

from ptjax.errors import UserError
from ptjax.models.config import GLOBAL_WINDOW, from_hf, rope
from ptjax.models.load import read_config
from tests.golden import weights


def raw(name="smollm2", **changes):
    return {**weights.load(f"models/{name}")["config"], **changes}


def test_default_frequencies():
    found = rope({"rope_theta": 100.0}, 4, 64)
    assert found.inv_freq == pytest.approx([1, 0.1])
    assert found.factor == 1


def test_linear_interpolation_divides_them():
    found = rope({"rope_theta": 100.0, "rope_type": "linear", "factor": 4.0}, 4, 64)
    assert found.inv_freq == pytest.approx([0.25, 0.025])


def test_llama3_keeps_short_wavelengths_and_divides_long_ones():
    settings = dict(
        rope_type="llama3",
        rope_theta=1e6,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=64,
    )
    plain = rope({"rope_theta": 1e6}, 16, 64).inv_freq
    found = rope(settings, 16, 512).inv_freq
    assert found[0] == plain[0] and 2 * math.pi / plain[0] < 64 / 4
    assert found[-1] == pytest.approx(plain[-1] / 8)
    assert all(b / 8 <= a <= b for a, b in zip(found, plain, strict=True))


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({}, 0.1 * math.log(4) + 1),
        ({"attention_factor": 1.5}, 1.5),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        ({"factor": 1.0}, 1.0),
    ],
)
def test_yarn_keeps_fast_rotations_divides_slow_ones_and_scales_attention(changes, factor):
    settings = dict(
        rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=4096
    )
    plain = rope({"rope_theta": 1e6}, 64, 4096).inv_freq
    found = rope(settings | changes, 64, 16384)
    assert found.factor == pytest.approx(factor)
    turns = [4096 * freq / (2 * math.pi) for freq in plain]
    for turned, here, before in zip(turns, found.inv_freq, plain, strict=True):
        if turned > 64:
            assert here == before
        elif turned < 0.5:
            assert here == pytest.approx(before / (settings | changes)["factor"])
        else:
            assert before / 4 <= here <= before


def test_windows_and_kinds_by_layer():
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = from_hf(raw(layer_types=kinds, sliding_window=9))
    assert config.window == (9, GLOBAL_WINDOW, 9)
    both = {"sliding_attention": {"rope_theta": 10.0}, "full_attention": {"rope_theta": 1000.0}}
    config = from_hf(raw(layer_types=kinds, sliding_window=9, rope_parameters=both))
    assert [config.ropes[kind].inv_freq[1] for kind in config.rope_kind] == pytest.approx(
        [10**-0.25, 1000**-0.25, 10**-0.25]
    )


def test_features_override():
    config = from_hf(raw(), norm="post", attn_softcap=5.0)
    assert (config.norm, config.attn_softcap, config.with_vocab(7).vocab) == ("post", 5.0, 7)
    assert hash(config) == hash(from_hf(raw(), norm="post", attn_softcap=5.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model_type="lama"), "model_type 'lama' is not supported; did you mean 'llama'"),
        (dict(model_type=None), "model_type None is not supported"),
        (dict(quantization_config={"bits": 4}), "quantised checkpoints are not supported"),
        (dict(rope_parameters={"rope_theta": 1.0, "rope_type": "longrope"}), "'longrope'"),
        (
            dict(rope_parameters={"rope_theta": 1.0, "rope_type": "dynamic", "factor": 2.0}),
            "rope_type 'dynamic' is not supported; known: linear, llama3, yarn",
        ),
        (dict(rope_parameters={"rope_theta": 1.0, "rope_type": "yarn"}), "keys .* {'factor'}"),
        (dict(layer_types=["chunked_attention"] * 3), "'chunked_attention' is not supported"),
        (dict(layer_types=["sliding_attention"] * 3), "sliding_window is not set"),
        (dict(hidden_size="big"), "config.json is not a valid llama config"),
    ],
)
def test_what_is_refused_is_one_clear_line(changes, message):
    with pytest.raises(UserError, match=message) as found:
        read_config(raw(**changes), "folder")
    assert "\n" not in str(found.value)


def test_a_model_of_more_than_text_is_told_as_such():
    raw = {"model_type": "llava", "text_config": {"model_type": "llama"}}
    with pytest.raises(UserError, match="'llava' is a model of more than text.* gemma3 is read"):
        read_config(raw, "here")
