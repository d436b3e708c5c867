"""A run on eight devices is the run on one: losses, parameters, samples, and what moves."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax import sharding
from ptjax.config import lora
from ptjax.evals import evaluate, sample_prompts
from ptjax.models.load import load
from ptjax.models.spec import shape
from ptjax.prepare import prepare
from tests import tiny
from tests.full import only_in_full

MESHES = {
    "one": {},
    "fsdp 8": dict(fsdp=8),
    "fsdp 4 x tensor 2": dict(fsdp=4, tensor=2),
    "data 2 x fsdp 2 x tensor 2": dict(data=2, fsdp=2, tensor=2),
    "sequence 2 x fsdp 4": dict(sequence=2, fsdp=4),
}
MANY = [name for name in MESHES if name != "one"]
# Rows of 72 tokens: sizes of activations have a factor of 9, sizes of weights have not.
LENGTH, ROWS, STEPS = 72, 16, 3
COLLECTIVE = re.compile(
    r" = (\(?[a-z0-9]+\[.*?) (all-gather|all-to-all|all-reduce|collective-permute|reduce-scatter)"
    r"(?:-start)?\("
)
ARRAY = re.compile(r"([a-z]+[0-9]*)\[([0-9,]*)\]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("mesh"), vocab_size=384)


@pytest.fixture(scope="module")
def prepared(folder):
    """(mesh, kind) -> the run before its first step; `one` is one device of the eight."""

    @functools.cache
    def build(name, kind="full"):
        config = tiny.tiny_config(
            folder,
            steps=STEPS,
            accumulate=2,
            **{
                "data.max_length": LENGTH,
                "data.tokens_per_batch": LENGTH * ROWS,
                # Adam divides by gradients' sizes: without this, rounding of the smallest decides.
                "optim.eps": 1e-3,
                "samples.max_tokens": 8,
            },
        )
        if kind == "lora":
            config.lora = lora(rank=4)
        for axis in sharding.AXES:
            config.mesh[axis] = MESHES[name].get(axis, 1)
        return prepare(config)

    def on(name, kind="full"):
        if name != "one":
            return build(name, kind)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax, "devices", functools.partial(list, jax.devices()[:1]))
            return build(name, kind)

    return on


@pytest.fixture(scope="module")
def trained(prepared):
    """(mesh, kind) -> (losses, gradient norms, held-out numbers, the state after the last step)."""

    @functools.cache
    def run(name, kind):
        job = prepared(name, kind)
        # The step donates its state; other tests look at the first one.
        state, batches = jax.tree.map(jnp.copy, job.state), job.pipeline.train()
        losses, norms = [], []
        with jax.set_mesh(job.mesh):
            for _ in range(STEPS):
                columns = sharding.put_batch(next(batches).columns, job.mesh)
                state, logged = job.train_step(state, columns)
                losses.append(float(logged["loss"]))
                norms.append(float(logged["grad_norm"]))
            held_out = evaluate(job, state, state.merged(), job.pipeline.validation())
        batches.close()
        return losses, norms, held_out, state

    return run


CASES = [
    *[(name, "full") for name in MANY if "sequence" not in name],
    ("data 2 x fsdp 2 x tensor 2", "lora"),
    pytest.param("sequence 2 x fsdp 4", "full", marks=only_in_full),
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_mesh_trains_what_one_device_trains(trained, name, kind):
    losses, norms, held_out, state = trained(name, kind)
    wanted_losses, wanted_norms, wanted_held_out, wanted = trained("one", kind)
    assert wanted_losses[-1] < wanted_losses[0]
    np.testing.assert_allclose(losses, wanted_losses, rtol=2e-6)
    np.testing.assert_allclose(norms, wanted_norms, rtol=2e-5)
    assert held_out.keys() == wanted_held_out.keys()
    for key, value in held_out.items():
        np.testing.assert_allclose(value, wanted_held_out[key], rtol=1e-5, err_msg=key)
    assert state.params.keys() == wanted.params.keys()
    for key, leaf in state.params.items():
        np.testing.assert_allclose(leaf, wanted.params[key], atol=5e-6, err_msg=key)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_leaf_lies_as_the_rules_say(prepared, trained, name, kind):
    job = prepared(name, kind)
    for state in (job.state, trained(name, kind)[3]):
        for key, leaf in state.merged().items():
            wanted = sharding.named(job.rows[key].names, leaf.shape, job.mesh)
            assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), key
        moments = [m for m in jax.tree.leaves(state.opt_state) if m.ndim]
        assert len(moments) == 2 * len(state.params)
        placed = {(leaf.shape, leaf.sharding.spec) for leaf in state.params.values()}
        assert {(m.shape, m.sharding.spec) for m in moments} == placed
        assert state.step.sharding.is_fully_replicated


def test_a_device_of_eight_holds_an_eighth(prepared, trained):
    for state in (prepared("fsdp 8").state, trained("fsdp 8", "full")[3]):
        leaves = [*jax.tree.leaves(state.params), *jax.tree.leaves(state.opt_state)]
        whole = sum(leaf.nbytes for leaf in leaves)
        for device in jax.devices():
            here = sum(
                shard.data.nbytes
                for leaf in leaves
                for shard in leaf.addressable_shards
                if shard.device == device
            )
            assert whole / 8 <= here < whole / 8 + 64


def test_adapters_are_cut_along_their_kernels(prepared):
    params = prepared("data 2 x fsdp 2 x tensor 2", "lora").state.params
    specs = {name: tuple(leaf.sharding.spec) for name, leaf in params.items()}
    assert specs["layers.q.lora_a"] == (None, "fsdp", None)
    assert specs["layers.q.lora_b"] == (None, None, "tensor", None)
    assert specs["layers.down.lora_a"] == (None, "tensor", None)
    assert specs["layers.down.lora_b"] == (None, None, "fsdp")


@pytest.mark.parametrize("name", MANY)
def test_load_puts_every_part_in_its_place(folder, prepared, name, monkeypatch):
    fetched = []
    array = type(jnp.zeros(1))
    value = array._value

    def watched(self):
        fetched.append((self.shape, self.sharding.is_fully_replicated))
        return value.fget(self)

    job = prepared(name)
    monkeypatch.setattr(array, "_value", property(watched))
    bundle = load(str(folder / "model"), mesh=job.mesh)
    assert not [shape for shape, replicated in fetched if not replicated]
    monkeypatch.undo()
    plain = load(str(folder / "model"))
    for key, leaf in bundle.params.items():
        assert leaf.sharding.spec == sharding.partition(job.rows[key].names, leaf.shape, job.mesh)
        assert not leaf.sharding.is_fully_replicated
        np.testing.assert_array_equal(leaf, plain.params[key])


def test_a_run_fetches_no_parameter(prepared, monkeypatch):
    job = prepared("fsdp 8")
    fetched = []
    array = type(jnp.zeros(1))
    value = array._value

    def watched(self):
        fetched.append(self.size)
        return value.fget(self)

    monkeypatch.setattr(array, "_value", property(watched))
    batches = job.pipeline.train()
    with jax.set_mesh(job.mesh):
        state = jax.tree.map(jnp.copy, job.state)
        columns = sharding.put_batch(next(batches).columns, job.mesh)
        state, logged = job.train_step(state, columns)
        jax.device_get(logged)
        evaluate(job, state, state.merged(), job.pipeline.validation())
    batches.close()
    assert fetched and max(fetched) == 1


def test_samples_of_a_mesh_are_those_of_one_device(prepared, trained):
    replies = []
    for name in ("one", "data 2 x fsdp 2 x tensor 2"):
        job = prepared(name)
        bundle = job.bundle
        bundle = type(bundle)(**{**vars(bundle), "params": trained(name, "full")[3].merged()})
        with jax.set_mesh(job.mesh):
            replies.append(sample_prompts(bundle, ["red sky", "tea time", "cold"], job.config))
    assert replies[0] == replies[1]
    assert any(reply for _, reply in replies[0])


@pytest.fixture(scope="module")
def program(prepared):
    """(mesh, kind) -> the compiled train step."""

    @functools.cache
    def build(name, kind):
        job = prepared(name, kind)
        columns = next(iter(job.pipeline.validation())).columns
        with jax.set_mesh(job.mesh):
            batch = sharding.put_batch(columns, job.mesh)
            return job.train_step.lower(job.state, batch).compile()

    return build


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_step_takes_over_the_memory_of_the_state_before(prepared, program, name, kind):
    state = prepared(name, kind).state
    here = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves((state.params, state.opt_state))
        for shard in leaf.addressable_shards
        if shard.device == jax.devices()[0]
    )
    assert program(name, kind).memory_analysis().alias_size_in_bytes >= here


def collectives(program):
    """(kind, dtype, entries) of everything that a compiled train step sends between devices."""
    for arrays, kind in COLLECTIVE.findall(program.as_text()):
        for dtype, sizes in ARRAY.findall(arrays):
            yield kind, dtype, int(np.prod([int(n) for n in sizes.split(",") if n], initial=1))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_only_weights_and_sums_move(prepared, program, name, kind):
    """Splitting off a micro-batch, packing, lookup, attention and the head stay on their device.

    But for rows that are cut along their length: their keys and values, and a number a token.
    """
    job = prepared(name, kind)
    tensor, sequence = job.mesh.shape["tensor"], job.mesh.shape.get("sequence", 1)
    config = job.bundle.model.config
    tokens = ROWS * LENGTH // (2 * sharding.batch_shards(job.mesh))
    keys = tokens * config.kv_heads * config.head_dim
    along = {tokens, keys, keys // sequence} if sequence > 1 else set()
    dims = {**job.bundle.model.config.dims, "rank": 4}
    weights = set()
    for row in job.rows.values():
        one_layer = row._replace(axes=row.axes.removeprefix("layers "))
        cut = any(sharding.RULES[axis] == "tensor" for axis in row.names)
        weights.add(int(np.prod(shape(one_layer, dims))) // (tensor if cut else 1))
    assert not any(size % (LENGTH // 8) == 0 for size in weights)
    moved = [one for one in collectives(program(name, kind)) if one[2] not in along]
    assert not [one for one in moved if one[0] == "all-to-all"]
    assert {size for kind, _, size in moved if kind != "all-reduce"} <= weights
    if kind == "full":
        assert not [one for one in moved if one[0] == "collective-permute"]
    integers = [one for one in moved if one[1] in ("s32", "u32", "pred")]
    assert {(kind, size) for kind, _, size in integers} <= {("all-reduce", 1)}
    if tensor == 1:
        assert not [one for one in moved if one[2] % (LENGTH // 8) == 0]


@pytest.mark.parametrize(("rows", "kv_heads"), [(4, 2), (3, 2), (4, 3), (1, 1)])
def test_what_does_not_divide_is_done_by_all(rows, kv_heads):
    mesh = sharding.make_mesh(MESHES["data 2 x fsdp 2 x tensor 2"])
    q = np.arange(rows * 2 * kv_heads, dtype=np.float32).reshape(rows, 2 * kv_heads)
    k = 1 + np.arange(rows * kv_heads, dtype=np.float32).reshape(rows, kv_heads)
    parts = []

    def product(q, k):
        parts.append((q.shape, k.shape))
        return q * jnp.repeat(k, 2, axis=1)

    def run(q, k):
        axes = ("batch", "heads"), ("batch", "kv_heads")
        return sharding.local(product, q, k, inputs=axes, output=axes[0])

    with jax.set_mesh(mesh):
        out, pull = jax.vjp(jax.jit(run), q, k)
        (gradient, _) = pull(out)
    np.testing.assert_array_equal(out, q * np.repeat(k, 2, axis=1))
    np.testing.assert_array_equal(gradient, out * np.repeat(k, 2, axis=1))
    height = rows // 4 if rows % 4 == 0 else rows
    width = kv_heads // 2 if kv_heads % 2 == 0 else kv_heads
    assert set(parts) == {((height, 2 * width), (height, width))}
