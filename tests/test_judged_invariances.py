"""What must not change a loss over judged answers: padding, packing, micro-batches, devices, order.

Through the model, once for each kind of reduction: pairs with a token mean beside them, single
answers, sampled answers with token means beside them, a scalar head at the last token and at every
step, pooled states.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax import sharding
from ptjax.algorithms import METHODS as ROWS
from ptjax.algorithms.online import online
from ptjax.forward import ForwardOptions
from ptjax.models.compute import Compute
from ptjax.models.decoder import Decoder
from ptjax.sharding import make_mesh
from ptjax.stages.base import Stage
from ptjax.step import gradients
from ptjax.types import TrainState
from tests import toy
from tests.full import FULL, only_in_full
from tests.toy import assert_same

COUNT, LENGTH, ROW = 8, 12, 40
ROLLOUT = Stage("rollout", lambda ctx, batch, carry: (batch, carry), sequences=2)
METHODS = {**ROWS, **online(ROLLOUT, ("grpo", "gspo"))}
LM, SCORER = Decoder(toy.CONFIG), Decoder(toy.CONFIG, head="score")
CASES = {
    "dpo, mixed": ("dpo", dict(loss=("sigmoid", "bco_pair", "sft"), loss_weights=(0.8, 0.2, 1.0))),
    "dpo, weighted": ("dpo", dict(wpo=True, ld_alpha=0.5)),
    "orpo": ("orpo", {}),
    "kto": ("kto", {}),
    "gspo": ("gspo", dict(clip_low=0.2, clip_high=0.3, beta=0.1, entropy_coef=0.1)),
    "reward": ("reward", dict(center=0.01)),
    "reward_ranked": ("reward_ranked", dict(center=0.01)),
    "process_reward": ("process_reward", {}),
}
QUICK = [CASES[name] for name in ("dpo, mixed", "kto", "gspo", "process_reward")]
"""One of each, at the model's end, which the suite computes in bfloat16."""
ON_MESH = [*QUICK, CASES["reward"], CASES["reward_ranked"]]
"""One of each reduction, which the suite packs and lays on a mesh in micro-batches."""
COUPLED = {"dpo, sorted": ("dpo", dict(loss="aot")), "embed": ("embed", {})}
ON_EVERY_MESH = {"dpo": ("dpo", {}), "grpo": ("grpo", dict(beta=0.1))}


def answers(method):
    """By example, its sequences; what a stage or the data say of a token depends on it alone."""
    width = {"mismatched": 1, "stepwise": 1, "ranked": 3}.get(METHODS[method].data, 2)
    made = [e for e in toy.examples(40, LENGTH, seed=2) if e.mask.any()][: COUNT * width]
    return [made[i : i + width] for i in range(0, len(made), width)]


def columns(groups, length=LENGTH, side="right"):
    """Columns of [B, N, T], unpacked."""
    width = len(groups[0])
    flat = toy.batch([one for group in groups for one in group], length, side)
    batch = {name: x.reshape(len(groups), width, *x.shape[2:]) for name, x in flat.items()}
    batch["weights"] = np.repeat(batch["weights"][:, :1], width, 1)
    tokens = batch["tokens"]
    return batch | {
        "ref_logps": (-(tokens % 7) * batch["mask"]).astype(np.float32),
        "old_logps": ((0.1 * (tokens % 7) - 4.5) * batch["mask"]).astype(np.float32),
        "advantages": (
            (np.sum(tokens * batch["mask"], -1, keepdims=True) % 5 - 2) * batch["mask"]
        ).astype(np.float32),
        "labels": ((tokens % 3 == 0) * batch["mask"]).astype(np.float32),
        "scores": np.stack(
            [tokens[:, n].sum(-1) * 0.0 + width - 1 - n for n in range(width)], 1
        ).astype(np.float32)
        if width > 1
        else np.array([[float(sum(g[0].tokens) % 2)] for g in groups], np.float32),
        "margin": np.array([0.1 * len(g[0].tokens) for g in groups], np.float32),
        "baseline": np.full(len(groups), 0.3, np.float32),
    }


def packed(groups, *, shards=1, accumulate=1):
    """The same with a `pack` column: each (shard, micro-batch) block packs its examples in turn."""
    batch, width = columns(groups), len(groups[0])
    per = len(groups) // (shards * accumulate)
    blocks = []
    for shard in range(shards):
        for micro in range(accumulate):
            rows = [[]]
            for place in range(per):
                group = groups[(shard * per + place) * accumulate + micro]
                if len(rows[-1]) + sum(len(one.tokens) for one in group) > ROW:
                    rows.append([])
                for n, one in enumerate(group):
                    start = (place * width + n) * LENGTH
                    rows[-1] += range(start, start + len(one.tokens))
            blocks.append(rows)
    height = max(map(len, blocks))
    pack = np.full((shards, height, accumulate, ROW), -1, np.int32)
    for block, rows in enumerate(blocks):
        for i, places in enumerate(rows):
            pack[block // accumulate, i, block % accumulate, : len(places)] = places
    return batch | {"pack": pack.reshape(-1, ROW)}


@functools.cache
def parameters(model):
    made = dict(toy.params())
    if model.head == "score":
        made.pop("head")
        size = toy.CONFIG.embed
        made["score"] = jnp.asarray(
            np.random.RandomState(9).standard_normal((size, 1)), jnp.float32
        )
    return made


@functools.cache
def compiled(model, bound, accumulate, mesh, dtype, chunk):
    options = ForwardOptions(Compute(dtype), head_chunk=chunk, pooling="mean")

    def run(params, batch):
        state = TrainState(jnp.int32(0), params, {}, {}, {})
        return gradients(
            model, bound, state, batch, accumulate=accumulate, options=options, key=None
        )

    return jax.jit(run, compiler_options=toy.QUICK)


def loss_and_gradients(
    case, batch, *, params=None, accumulate=1, mesh=None, dtype="float32", chunk=16
):
    method, hparams = case
    model = SCORER if METHODS[method].head == "score" else LM
    bound = METHODS[method].bind(hparams, "hparams")
    run = compiled(model, bound, accumulate, mesh, dtype, chunk)
    values = parameters(model) if params is None else params
    if mesh is None:
        loss, grads, _ = run(values, {name: jnp.asarray(x) for name, x in batch.items()})
    else:
        with jax.set_mesh(mesh):
            loss, grads, _ = run(toy.on_mesh(model, values, mesh), sharding.put_batch(batch, mesh))
    grads = {name: np.asarray(grad) for name, grad in grads.items()}
    return np.asarray(loss), {name: grad for name, grad in grads.items() if grad.any()}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def wanted(case):
    return loss_and_gradients(case, columns(answers(case[0])))


def padded(groups, side):
    """Longer rows, padded at a side, with filler of weight 0 among them."""
    filler = [toy.Example(np.array([5, 6, 7]), np.array([0, 1, 1], np.float32), 0.0)]
    return columns([*groups, filler * len(groups[0])], 17, side)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side_and_amount_and_filler_of_weight_zero(case, wanted, side):
    assert_same(loss_and_gradients(case, padded(answers(case[0]), side)), wanted)


@only_in_full
def test_packed_is_unpacked(case, wanted):
    batch = packed(answers(case[0]))
    assert len(batch["pack"]) < COUNT
    assert_same(loss_and_gradients(case, batch), wanted)


@only_in_full
def test_eight_micro_batches_of_one(case, wanted):
    assert_same(loss_and_gradients(case, columns(answers(case[0])), accumulate=8), wanted)


def test_a_permutation_of_the_batch(case, wanted):
    groups = answers(case[0])
    shuffled = [groups[i] for i in np.random.RandomState(3).permutation(COUNT)]
    assert_same(loss_and_gradients(case, columns(shuffled)), wanted)


def test_chunk_of_the_head():
    case = CASES["dpo, mixed"]
    batch = columns(answers(case[0]))
    assert_same(loss_and_gradients(case, batch, chunk=7), loss_and_gradients(case, batch))


def assert_bfloat16_is_near(case, wanted):
    loss, grads = loss_and_gradients(case, columns(answers(case[0])), dtype="bfloat16")
    assert loss != wanted[0] and abs(loss - wanted[0]) < 0.02 * max(abs(wanted[0]), 1)
    flat, exact = (
        np.concatenate([one[name].ravel() for name in sorted(wanted[1])])
        for one in (grads, wanted[1])
    )
    assert np.linalg.norm(flat - exact) < 0.1 * np.linalg.norm(exact)


def test_bfloat16_is_within_its_rounding(case, wanted):
    if not FULL and case not in QUICK:
        pytest.skip("PTJAX_FULL=1 runs it")
    assert_bfloat16_is_near(case, wanted)


def test_packed_micro_batches_on_a_mesh_are_one_device(case, wanted):
    """Where it fails, PTJAX_FULL=1 tells packing from micro-batches; it has the other cases too."""
    if not FULL and case not in ON_MESH:
        pytest.skip("PTJAX_FULL=1 runs it")
    mesh = make_mesh(toy.MESHES["data 2 x fsdp 2 x tensor 2"])
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    accumulate = COUNT // shards
    batch = packed(answers(case[0]), shards=shards, accumulate=accumulate)
    assert_same(loss_and_gradients(case, batch, mesh=mesh, accumulate=accumulate), wanted)


@functools.cache
def alone(name):
    case = ON_EVERY_MESH[name]
    return loss_and_gradients(case, columns(answers(case[0])))


@pytest.mark.parametrize("mesh", toy.MESHES)
@pytest.mark.parametrize("name", ON_EVERY_MESH)
def test_dpo_and_grpo_on_every_mesh_are_one_device(name, mesh):
    """Packed, as tests/test_invariances.py has SFT."""
    if not FULL and mesh in ("sequence 8", "sequence 2 x fsdp 2 x tensor 2"):
        pytest.skip("PTJAX_FULL=1 runs it")
    case, mesh = ON_EVERY_MESH[name], make_mesh(toy.MESHES[mesh])
    batch = packed(answers(case[0]), shards=sharding.batch_shards(mesh))
    assert_same(loss_and_gradients(case, batch, mesh=mesh), alone(name))


@pytest.mark.parametrize("name", COUPLED)
def test_a_loss_over_the_whole_batch(name):
    case = COUPLED[name]
    groups = answers(case[0])
    wanted = loss_and_gradients(case, columns(groups))
    for side in ("left", "right"):
        assert_same(loss_and_gradients(case, padded(groups, side)), wanted)
    assert_bfloat16_is_near(case, wanted)
    assert_same(loss_and_gradients(case, packed(groups)), wanted)
    shuffled = [groups[i] for i in np.random.RandomState(3).permutation(COUNT)]
    assert_same(loss_and_gradients(case, columns(shuffled)), wanted)
    mesh = make_mesh(toy.MESHES["fsdp 8"])
    assert_same(loss_and_gradients(case, packed(groups, shards=8), mesh=mesh), wanted)
    assert METHODS[case[0]].bind(case[1], "hparams").coupled
