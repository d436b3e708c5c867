"""What cuDNN would be asked, asked of jax's own implementation = a naive softmax."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from ptjax import sharding
from ptjax.errors import UserError
from ptjax.models.compute import Compute
from ptjax.models.config import GLOBAL_WINDOW
from ptjax.ops import cudnn
from ptjax.ops.attention import attention, chosen
from tests.ops.spans import H, arrays, check, groups_of, naive, packed_span

GPU = AbstractMesh(
    (1,) * len(sharding.AXES),
    sharding.AXES,
    axis_types=(AxisType.Auto,) * len(sharding.AXES),
    abstract_device=AbstractDevice(
        device_kind="NVIDIA A100-SXM4-40GB", num_cores=108, platform="gpu"
    ),
)
SHARED = groups_of([(13, 9, 2, 20), (1, 5, 1), (6, 3)], [(20, 1, 1, 1, 37)])


@pytest.mark.parametrize(("span", "window"), [(packed_span(60), 7), (SHARED, GLOBAL_WINDOW)])
def test_what_is_asked(span, window):
    q, k, v, ways = arrays(60, 60)
    settings = dict(query=span, key=span, window=jnp.int32(window), scale=0.3)
    got = functools.partial(cudnn.cudnn, **settings, implementation="xla")
    ways = ways * (span.segments > 0)[..., None, None]
    check(got, functools.partial(naive, **settings), q, k, v, ways)


def test_what_it_covers():
    span = packed_span(64)

    def kernel(asked="auto", shape=(2, 64, H, 128), dtype="bfloat16", softcap=None, aligned=True):
        q = jax.ShapeDtypeStruct(shape, dtype)
        return chosen(asked, q, span, 7, softcap, aligned=aligned)

    with jax.sharding.use_abstract_mesh(GPU):
        assert kernel() == kernel("cudnn") == kernel(dtype="float16") == "cudnn"
        assert kernel("tiles") == kernel(dtype="float32") == kernel(softcap=2.0) == "tiles"
        assert kernel(aligned=False) == kernel(shape=(2, 63, H, 128)) == "tiles"
        assert kernel(shape=(2, 8192, H, 128)) == kernel(shape=(2, 64, H, 12)) == "tiles"
    with pytest.raises(UserError, match="model.attention='cudnn': there is none on a cpu"):
        kernel("cudnn")


def test_without_cudnn_tiles_take_its_place(caplog):
    """jax looks for the library when the program is traced, and finds none here."""
    q, k, v, _ = (x.astype(jnp.bfloat16) for x in arrays(64, 64))
    span = packed_span(64)

    def made(kernel):
        return jax.make_jaxpr(
            lambda q, k, v: attention(
                *(q, k, v, span, span, 7), scale=0.3, aligned=True, kernel=kernel
            )
        )(q, k, v)

    with jax.sharding.use_abstract_mesh(GPU):
        assert str(made("auto")) == str(made("tiles"))
        assert "attention without cuDNN" in caplog.text
        with pytest.raises(UserError, match="set it to 'auto'"):
            made("cudnn")


def test_a_kernel_that_is_none():
    with pytest.raises(UserError, match="attention: 'flash' is none of auto, tiles"):
        Compute(attention="flash")
