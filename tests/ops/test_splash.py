"""Splash attention, in Pallas' interpreter = a naive softmax, values and gradients.

And what a TPU would be given, by lowering for one that is not there.
"""

import importlib.util
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from ptjax import sharding
from ptjax.models import spec
from ptjax.models.compute import Compute
from ptjax.models.config import GLOBAL_WINDOW
from ptjax.ops import splash
from ptjax.ops.attention import attention, chosen
from ptjax.ops.span import Span, visible
from ptjax.plan.topology import topology
from tests import toy
from tests.full import only_in_full
from tests.ops.spans import H, arrays, groups_of, naive, packed_span, rows_of

LENGTH = 200  # two blocks, the second not full
TPU = AbstractMesh(
    (1,) * len(sharding.AXES),
    sharding.AXES,
    axis_types=(AxisType.Auto,) * len(sharding.AXES),
    abstract_device=AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu"),
)


def checked(span, windows, *, mesh=None, **settings):
    """Values and gradients at real tokens; one program for all windows, or a number's own."""
    static = isinstance(windows, int)
    q, k, v, ways = arrays(LENGTH, LENGTH)
    real = (span.segments > 0)[..., None, None]

    def made(function, **more):
        def loss(qkv, window):
            out = jnp.where(real, function(*qkv, span, span, window, **settings, **more), 0)
            return jnp.sum(out * ways), out

        return jax.jit(jax.grad(loss, has_aux=True), static_argnums=(1,) if static else ())

    got, wanted = made(attention, aligned=True, kernel="splash"), made(naive)
    for window in (windows,) if static else map(jnp.int32, windows):
        with jax.set_mesh(mesh or sharding.make_mesh({}, jax.devices()[:1])):
            found = got((q, k, v), window)
        for a, b in zip(
            jax.tree.leaves(found), jax.tree.leaves(wanted((q, k, v), window)), strict=True
        ):
            np.testing.assert_allclose(np.asarray(a), b, atol=3e-5)


def test_packed_rows_and_windows_of_one_program():
    checked(packed_span(LENGTH), (GLOBAL_WINDOW, 37), scale=0.8, softcap=1.5)


@pytest.mark.parametrize("window", [GLOBAL_WINDOW, 37])
def test_a_row_that_is_longer_than_a_code_holds(monkeypatch, window):
    monkeypatch.setattr(splash, "BITS", 7)
    checked(packed_span(LENGTH), window, scale=0.8)


def test_answers_share_their_prompt():
    """Over two blocks: groups within one, and across both."""
    rows = [(60, 40, 20, 30), (10, 5, 11), (9, 15)], [(100, 20, 61, 19)]
    checked(groups_of(*rows), GLOBAL_WINDOW, scale=0.3)


def test_over_a_mesh():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    span = jax.tree.map(lambda x: jnp.concatenate([x, x[::-1]]), packed_span(LENGTH))
    q, k, v, ways = (jnp.concatenate([x, 2 * x]) for x in arrays(LENGTH, LENGTH))
    ways = ways * (span.segments > 0)[..., None, None]

    def gradients(function, **more):
        def loss(q, k, v):
            return jnp.sum(function(q, k, v, span, span, 37, scale=0.3, **more) * ways)

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))

    with jax.set_mesh(mesh):
        heads = sharding.named(("batch", "length", "heads", "head_dim"), q.shape, mesh)
        run = gradients(attention, aligned=True, kernel="splash")
        found = run(*jax.device_put((q, k, v), heads))
    assert found[0].sharding.is_equivalent_to(heads, 4)
    for a, b in zip(found, gradients(naive)(q, k, v), strict=True):
        np.testing.assert_allclose(np.asarray(a), b, atol=3e-5)


SPANS = {
    "packed": rows_of([200, 90, 222], [210, 100, 202]),
    "padded in front": packed_span(512),
    "shared": groups_of([(60, 140, 20, 30), (130, 25, 11), (9, 15)], [(200, 20, 61, 231)]),
}
MOST = {"packed": 7, "padded in front": 10, "shared": 8 + 7}
"""Blocks to read, of 4 x 4, and as many of copies where beginnings are shared."""


@pytest.mark.parametrize("case", SPANS)
def test_codes_say_what_is_visible_and_blocks_hold_it(case):
    """The mask that the kernel would make, of the blocks it would not skip = `visible`'s."""
    span, block = SPANS[case], 128
    own = 0 if span.leads is None else span.segments.shape[1]

    @jax.jit
    def made(span, window):
        first, last = splash._reach(span, window)
        codes = first << (splash.BITS + 1) | last
        needed = splash._seen_blocks(first, last, block, codes.shape[1])
        same = True
        if own:
            opens = splash.run_starts(span.leads)
            same = opens[:, :, None] == splash._key_ids(opens, span.begins)[:, None]
            codes = jnp.where(span.begins > 0, codes | splash._SHARES, codes)
            begun = splash._begun(opens, span.begins, block, own)
            needed = jnp.concatenate([begun, needed], axis=1)
        seen = splash._Seen(own)(codes[:, :, None], jnp.arange(own + codes.shape[1])) & same
        real = (span.segments > 0)[..., None]
        return seen & real, needed, visible(span, span, window) & real

    for window in (GLOBAL_WINDOW,) if own else (GLOBAL_WINDOW, 77):
        seen, needed, wanted = map(np.asarray, made(span, jnp.int32(window)))
        read = needed.repeat(block, axis=0).repeat(block, axis=1)
        assert not np.any(seen & ~read)
        assert needed.sum() <= MOST[case]
        if own:
            assert not np.any(seen[..., :own] & seen[..., own:])
            seen = seen[..., :own] | seen[..., own:]
        np.testing.assert_array_equal(seen, wanted)


def test_blocks_to_fetch():
    needed = jnp.array([[0, 1, 0, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 1]], bool)
    wanted = [[1, 1, 3, 3, 3], [0, 1, 1, 1, 1], [4, 4, 4, 4, 4]]
    np.testing.assert_array_equal(splash._next(needed, 1), wanted)
    np.testing.assert_array_equal(splash._next(needed.T, 0), np.transpose(wanted))


def lowered(function, *args):
    """The text of a program for the TPU, of which there is none; and the kernels in it."""
    with jax.sharding.use_abstract_mesh(TPU):
        text = jax.jit(function).trace(*args).lower(lowering_platforms=("tpu",)).as_text()
    return re.findall(r'kernel_name = "splash_mha_(\w+?)_', text)


def test_the_mesh_chooses_the_kernel():
    """A program for TPUs is made where there is none, as `ptjax.plan` does."""
    q = jax.ShapeDtypeStruct((2, 512, H, 64), jnp.bfloat16)
    whole = packed_span(512)
    shared = SPANS["shared"]

    def kernel(asked="auto", q=q, span=whole, window=GLOBAL_WINDOW, softcap=None, aligned=True):
        return chosen(asked, q, span, window, softcap, aligned=aligned)

    assert kernel() == "tiles" and kernel("splash") == "splash"
    with jax.sharding.use_abstract_mesh(TPU):
        assert kernel() == kernel(softcap=3.0) == kernel(window=jnp.int32(5)) == "splash"
        assert kernel(span=shared) == "splash"
        assert kernel("tiles") == kernel(aligned=False) == "tiles"
        assert kernel(span=shared, window=99) == kernel(span=shared, window=jnp.int32(9)) == "tiles"
        long = jax.ShapeDtypeStruct((1, 2**15 + 1, 1, 8), jnp.bfloat16)
        assert kernel(q=long) == kernel(q=long, window=9) == "splash"
        assert kernel(q=jax.ShapeDtypeStruct((1, 2**17 + 1, 1, 8), jnp.bfloat16)) == "tiles"
        assert kernel(q=long, window=jnp.int32(9)) == kernel(q=long, span=shared) == "tiles"


@pytest.mark.parametrize(("remat", "runs"), [("dots_and_attention", 1), ("full", 2)])
def test_the_backward_pass_runs_the_forward_kernel_again_only_where_asked(remat, runs):
    """Layers of two windows under one scan are one kernel; its result is kept by its name."""
    model, rows = toy.MODEL, jax.ShapeDtypeStruct((2, 256), jnp.int32)
    params = spec.shapes(model.table, model.config.dims, jnp.dtype("float32"))

    def loss(params, tokens, positions, segments):
        span = Span(positions, segments)
        return jnp.sum(model.hidden(params, tokens, span, compute=Compute("bfloat16", remat)))

    found = lowered(jax.grad(loss), params, rows, rows, rows)
    assert sorted(found) == ["dkv", "dq", *["fwd"] * runs]


@only_in_full
def test_a_decoder_of_local_and_global_layers():
    """By the kernel in its interpreter and by tiles: the same hidden states and gradients."""
    model, span = toy.MODEL, packed_span(LENGTH)
    tokens = jnp.asarray(np.random.RandomState(0).randint(0, 64, (2, LENGTH)))
    params = toy.params()

    def run(kernel):
        def loss(params):
            compute = Compute(remat="dots_and_attention", attention=kernel)
            hidden = model.hidden(params, tokens, span, compute=compute)
            return jnp.sum(jnp.square(hidden) * (span.segments > 0)[..., None])

        return jax.jit(jax.value_and_grad(loss))(params)

    for a, b in zip(jax.tree.leaves(run("splash")), jax.tree.leaves(run("tiles")), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is needed")
@pytest.mark.parametrize(
    ("case", "axis", "sends"),
    [
        ("packed", "fsdp", {}),
        ("shared", "fsdp", {}),
        ("shared", "sequence", {"all-gather": 2, "reduce-scatter": 2}),
    ],
)
def test_the_compiler_of_a_tpu_takes_it(case, axis, sends, monkeypatch):
    """Three kernels in the optimised program of four chips, and nothing sent between them.

    But keys, values and their gradients, where rows are cut along their length.
    """
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        monkeypatch.setenv(name, value)
    mesh = sharding.make_mesh({axis: 2, "tensor": 2}, topology("v5e:2x2").devices)

    def given(shape, dtype, *axes):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.named(axes, shape, mesh))

    q, k = (
        given((2, 512, heads, 64), jnp.bfloat16, "batch", "length", name, "head_dim")
        for heads, name in ((4, "heads"), (2, "kv_heads"))
    )
    span = jax.tree.map(lambda x: given(x.shape, x.dtype, "batch", "slots"), SPANS[case])

    def loss(q, k, v, span):
        run = attention(q, k, v, span, span, GLOBAL_WINDOW, scale=0.3, aligned=True)
        return jnp.sum(run.astype(jnp.float32) ** 2)

    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, k, k, span).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 3
    kinds = r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    assert Counter(re.findall(kinds, text)) == sends
