"""What is promised of every optimised step: a chunk's logits alone, nothing twice, what it sends.

By the compiler of CPUs, that of TPUs where libtpu is installed, and that of GPUs where jax's plugin
is. What a layer sends is the difference of two programs that differ by layers alone, so that head
and embeddings drop out.
"""

import functools
import importlib.util
import json
import tempfile
from pathlib import Path

import jax
import pytest

from ptjax import sharding
from ptjax.config import load
from ptjax.plan import gpus
from ptjax.plan.compiled import compile_one
from ptjax.plan.environment import no_tpu
from ptjax.plan.hlo import parse
from ptjax.plan.programs import programs, resident, train
from ptjax.plan.shapes import job
from ptjax.plan.topology import topology

DEVICES, LAYERS, MORE = 4, 2, 2
D, MLP, H, K, E, V = 128, 256, 4, 4, 128, 20480
LENGTH, ROWS, CHUNK = 128, 32, 128
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": MLP,
    "num_attention_heads": H,
    "num_key_value_heads": K,
    "head_dim": E,
    "max_position_embeddings": LENGTH,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
}
PROJECTIONS, HIDDEN_UNITS = D * E * (2 * H + 2 * K), 3 * D * MLP
KERNELS = PROJECTIONS + HIDDEN_UNITS
"""Parameters of a layer's products."""
X, C = 8, 2
MIXTURE = {"model_type": "mixtral", "num_local_experts": X, "num_experts_per_tok": C}
FULL = {
    "model.remat": "none",
    "model.head_chunk": CHUNK,
    "data.max_length": LENGTH,
    "data.tokens_per_batch": LENGTH * ROWS,
    "data.validation": None,
}
"""Of full fine-tuning."""
LARGE = {"model.remat": "full", "model.dtype": "bfloat16", "accumulate": 1}
"""As large runs have it."""
SETTINGS = {
    "sft": FULL,
    "sft minimal": FULL | {"model.remat": "minimal"},
    "dpo": FULL | LARGE,
    "grpo:lora": {
        **LARGE,
        "model.param_dtype": "bfloat16",
        "model.head_chunk": CHUNK,
        "data.max_length": LENGTH // 2,
        "rollout.max_tokens": LENGTH // 2,
        "rollout.n": 4,
        "data.batch_size": ROWS // 4,
        "checkpoint.best": None,
        "data.validation": None,
    },
}
"""Of each recipe, so that as many tokens are asked about."""
STEPS = [
    ("sft", {"fsdp": DEVICES}),
    ("sft", {"tensor": DEVICES}),
    ("sft minimal", {"fsdp": DEVICES}),
    ("dpo", {"fsdp": DEVICES}),
    ("grpo:lora", {"fsdp": 2, "tensor": 2}),
]
NEEDED = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is needed"
)
TPU = pytest.param("v5e:2x2", marks=NEEDED)
PLUGIN = pytest.mark.skipif(not gpus.installed(), reason="the GPU compiler is needed")
EACH_TPU = [(name, 1) for name in ("v4:2x2x1", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")]
EACH_GPU = [(f"{name}:4", 1) for name in gpus.GPUS if name != "h100"]
PLACES = ["cpu", TPU, pytest.param("h100:4", marks=PLUGIN)]


def planned(place, layers, recipe, mesh, *, slices=1, **settings):
    """A job on four devices of each slice, and the slice of each of them."""
    if place != "cpu":
        no_tpu()
    with tempfile.TemporaryDirectory() as source:
        shape = {**SHAPE, "num_hidden_layers": layers, **(MIXTURE if "expert" in mesh else {})}
        (Path(source) / "config.json").write_text(json.dumps(shape))
        axes = {f"mesh.{axis}": size for axis, size in mesh.items()}
        name, _, kind = recipe.partition(" ")[0].partition(":")
        path = f"configs/{name}.py" + (f":{kind}" if kind else "")
        config = load(path, {"model.source": source, **axes, **settings})
        where = topology(place, slices=slices)
        devices = sharding.make_mesh(config.mesh.to_dict(), where.devices[: slices * DEVICES])
        return job(config, devices), where.slices_of(devices)


def step(place, layers, recipe="sft", **mesh):
    """A compiled optimizer step on four devices."""
    return _step(place, layers, recipe, tuple(mesh.items()))


@functools.cache
def _step(place, layers, recipe, mesh):
    made, of = planned(place, layers, recipe, {"fsdp": 1, **dict(mesh)}, **SETTINGS[recipe])
    return compile_one(train(made), made.mesh, resident(made), of)


def sent_by_a_layer(place, recipe="sft", **mesh):
    """Bytes that a device sends for one layer of a step, by kind of collective."""
    few, many = (
        {one.kind: one.sent for one in step(place, layers, recipe, **mesh).traffic}
        for layers in (LAYERS, LAYERS + MORE)
    )
    return {kind: (sent - few.get(kind, 0)) / MORE for kind, sent in many.items()}


@pytest.mark.parametrize(("recipe", "mesh"), STEPS, ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_no_array_of_the_vocabulary_is_longer_than_a_chunk(place, recipe, mesh):
    """Of the largest values; the logits of all tokens would be the first of them."""
    words = V // mesh.get("tensor", 1)
    tokens = ROWS * LENGTH // mesh.get("fsdp", 1)
    allowed = 4 * max(CHUNK, D) * words
    largest = step(place, LAYERS, recipe, **mesh).buffers
    assert all(one.size <= allowed for one in largest if str(words) in one.shape)
    assert 4 * tokens * words > max(8 * allowed - 1, largest[0].size)


@pytest.mark.parametrize("place", PLACES)
def test_nor_is_one_in_the_passes_of_a_rollout_and_of_held_out_data(place):
    """The reference's, the policy's before it learns, and a held-out batch's."""
    recipes = {
        "grpo:lora": {"rollout.epochs": 2, "hparams.beta": 0.04},
        "dpo": {"data.validation": 0.1},
    }
    names = {"reference pass", "policy pass", "evaluation"}
    for recipe, more in recipes.items():
        settings = SETTINGS[recipe] | more
        made, of = planned(place, LAYERS, recipe, {"fsdp": 2, "tensor": 2}, **settings)
        for one in programs(made):
            if one.name in names:
                names -= {one.name}
                found = compile_one(one, made.mesh, resident(made), of)
                wide = [each.size for each in found.buffers if str(V // 2) in each.shape]
                assert wide and max(wide) <= 4 * CHUNK * V // 2, one.name
    assert not names


@pytest.mark.parametrize(("recipe", "mesh"), STEPS, ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_the_state_is_donated_whole(place, recipe, mesh):
    """A TPU pads norms and counters, and an adapter's ranks."""
    found = step(place, LAYERS, recipe, **mesh)
    padding = 0 if place == "cpu" else found.wanted // (20 if "lora" in recipe else 1000)
    assert found.wanted <= found.memory.donated <= found.wanted + padding


@pytest.mark.parametrize("place", PLACES)
def test_fsdp_gathers_head_and_embedding_once_whatever_the_number_of_chunks(place):
    """Of eight chunks here. To two per cent: the last norm is not counted."""
    each = 4 * V * D * (DEVICES - 1) / DEVICES
    whole = {one.kind: one.sent for one in step(place, LAYERS, fsdp=DEVICES).traffic}
    rest = whole["all-gather"] - LAYERS * sent_by_a_layer(place, fsdp=DEVICES)["all-gather"]
    narrow = 0.5 if place.startswith("v") else 1
    assert 2 * narrow * each * 0.98 <= rest <= 2 * each * 1.02


@pytest.mark.parametrize("place", PLACES)
def test_fsdp_gathers_a_layers_kernels_twice_and_sums_their_gradient_once(place):
    """To a per cent: norms are not counted. A sum that is not scattered sends twice as much.

    A TPU's products take bfloat16: kernels are sent so, their gradient so or in float32.
    """
    share = 4 * KERNELS * (DEVICES - 1) / DEVICES
    narrow = 0.5 if place.startswith("v") else 1
    sent = sent_by_a_layer(place, fsdp=DEVICES)
    assert sent["all-gather"] == pytest.approx(2 * narrow * share, rel=0.01)
    summed = sent.get("reduce-scatter", 0) + sent["all-reduce"] / 2
    assert 0.99 * narrow * share <= summed <= 1.01 * share


@pytest.mark.parametrize("place", PLACES)
def test_heads_and_hidden_units_sum_a_layers_activations(place):
    """Twice forward; backward what q, k, v, gate and up give, which all but a CPU's adds first."""
    share = 2 * ROWS * LENGTH * D * 4 * (DEVICES - 1) / DEVICES
    sent = sent_by_a_layer(place, tensor=DEVICES)
    assert sent.keys() == {"all-reduce"}
    assert sent["all-reduce"] / share == pytest.approx(2 + (5 if place == "cpu" else 2), rel=0.01)


@pytest.mark.parametrize("place", PLACES)
def test_a_layer_in_parts_gathers_attentions_kernels_once_more(place):
    """And no kernel more often for being in parts, to two per cent."""
    share = 4 * (DEVICES - 1) / DEVICES
    sent = sent_by_a_layer(place, "sft minimal", fsdp=DEVICES)
    assert sent["all-gather"] == pytest.approx((2 * KERNELS + PROJECTIONS) * share, rel=0.02)
    summed = sent.get("reduce-scatter", 0) + sent["all-reduce"] / 2
    narrow = 0.5 if place.startswith("v") else 0.99
    assert narrow * KERNELS * share <= summed <= 1.01 * KERNELS * share


@pytest.mark.parametrize("place", PLACES)
def test_a_layer_in_parts_sums_activations_for_each_part(place):
    """Attention is computed three times, in one part; the MLP twice, in two, of at most 8 / 4."""
    share = 2 * ROWS * LENGTH * D * 4 * (DEVICES - 1) / DEVICES
    sent = sent_by_a_layer(place, "sft minimal", tensor=DEVICES)
    attention, fed = (1 + 1 + 3, 2 * (1 + 2)) if place == "cpu" else (1 + 1 + 1, 2 * (1 + 1))
    assert sent["all-reduce"] / share == pytest.approx(attention + fed, rel=0.01)


@pytest.mark.parametrize("place", PLACES)
def test_keys_go_to_the_rest_of_their_row_and_tokens_to_all_experts(place):
    """And what comes back is summed. Kernels are gathered over both axes, experts' over one.

    With a token goes what it was routed to, and its weights. A TPU's products take the projections
    in bfloat16; experts and router are sent as they are, gradients so or so.
    """
    tokens = 4 * ROWS * LENGTH // DEVICES
    keys, states, routes = 2 * tokens * K * E, tokens * D, tokens * C
    projections, router = (4 * each * (DEVICES - 1) / DEVICES for each in (PROJECTIONS, D * X))
    own = 4 * HIDDEN_UNITS * X / 2 / 2 + router
    sent = sent_by_a_layer(place, sequence=2, expert=2)
    narrow = 0.5 if place.startswith("v") else 1
    kernels = 2 * (narrow * projections + own)
    assert sent["all-gather"] == pytest.approx(kernels + keys + 2 * states + 2 * routes, rel=0.001)
    summed = sent["reduce-scatter"] + sent["all-reduce"] / 2 - (keys + 2 * states + routes)
    assert 0.99 * narrow * (projections + own) <= summed <= 1.01 * (projections + own)


@pytest.mark.parametrize("place", PLACES)
def test_neither_head_nor_embedding_is_gathered_where_the_vocabulary_is_sharded(place):
    """What tokens look up is summed, and what all chunks give hidden states: no kernel moves."""
    share = 2 * ROWS * LENGTH * D * 4 * (DEVICES - 1) / DEVICES
    whole = {one.kind: one.sent for one in step(place, LAYERS, tensor=DEVICES).traffic}
    assert whole.keys() == {"all-reduce"}
    rest = whole["all-reduce"] - LAYERS * sent_by_a_layer(place, tensor=DEVICES)["all-reduce"]
    assert 2 * share < rest < 3 * share < share * V / (ROWS * LENGTH)


def decoding(place, mesh):
    """A job that writes 8 rows, and the program that writes a token of each."""
    made, of = planned(
        *(place, LAYERS, "grpo", mesh),
        **{"data.max_length": 32, "data.batch_size": 4, "rollout.n": 2, "rollout.rows": 8},
        **{"rollout.max_tokens": 32, "accumulate": 1},
    )
    (decode,) = [one for one in programs(made) if one.name == "decode"]
    return made, of, decode


@pytest.mark.parametrize("place", PLACES)
def test_a_token_of_each_row_is_written_without_moving_a_kernel(place):
    """Sums of products are sent, as long as rows are fewer than a kernel's: no gathered copy."""
    made, of, decode = decoding(place, {"fsdp": DEVICES})
    found = compile_one(decode, made.mesh, resident(made), of)
    whole = 4 * (LAYERS * KERNELS + 2 * V * D)
    assert sum(one.sent for one in found.traffic) < whole / 10
    # On a CPU each layer's own part is copied out of its stack.
    assert found.memory.temporaries < whole / (2 if place == "cpu" else 4)


@NEEDED
@pytest.mark.parametrize(
    ("place", "mesh"),
    [
        ("v5e:2x2", {"fsdp": DEVICES}),
        ("v5e:2x2", {"fsdp": 2, "tensor": 2}),
        ("v4:2x2x1", {"fsdp": DEVICES}),
        ("v5p:2x2x1", {"fsdp": DEVICES}),
        ("v6e:2x2", {"fsdp": DEVICES}),
        ("tpu7x:2x2x1", {"fsdp": DEVICES}),
    ],
)
def test_a_cache_stays_where_it_is_while_tokens_are_written(place, mesh):
    """A kernel a layer, and nothing else makes an array of a layer's keys or values.

    But that a small one is moved into the core's own memory, as it lies, while a loop runs.
    """
    made, _, decode = decoding(place, mesh)
    with jax.set_mesh(made.mesh):
        program = parse(decode.jitted.lower(*decode.args, **decode.kwargs).compile().as_text())
    layer = decode.args[2].cache.k[0]
    part = ",".join(map(str, layer.sharding.shard_shape(layer.shape)))
    ops = [op for of in program.computations.values() for op in of]
    assert sum("ragged_decode" in op.text and op.code == "custom-call" for op in ops) == LAYERS
    makers = {op.code for op in ops if op.shape.startswith(f"f32[{part}]")}
    assert makers <= {"parameter", "get-tuple-element", "bitcast", "copy-done"}


@pytest.mark.parametrize(
    ("place", "slices"),
    [
        *(pytest.param(*one, marks=NEEDED) for one in (*EACH_TPU, ("v5e:2x2", 2))),
        *(pytest.param(*one, marks=PLUGIN) for one in (*EACH_GPU, ("h100:4", 2))),
    ],
)
def test_a_step_compiles_for_every_generation_and_over_two_slices(place, slices):
    made, of = planned(
        *(place, LAYERS, "sft", {"data": slices, "fsdp": DEVICES}), slices=slices, **FULL
    )
    found = compile_one(train(made), made.mesh, resident(made), of)
    assert found.memory is not None
    networks = {one.between_slices for one in found.traffic if one.sent}
    assert networks == ({False, True} if slices > 1 else {False})
