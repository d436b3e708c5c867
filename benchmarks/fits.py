"""What a config's step takes on a TPU, by the TPU compiler: nothing is loaded, no TPU is needed.

    pip install -e . "libtpu==0.0.42.*"      # in an environment of its own
    export TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu
    python -m benchmarks.fits v5e:1x1 configs/sft_colab_tpu.py

Compiles the train step from shapes alone: parameters, optimizer state and a packed batch, sharded
as the config says. Prints a chip's memory: arguments (state and batch), temporaries, peak. It says
nothing of time.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from ptjax import config as configs
from ptjax import prepare, sharding
from ptjax.algorithms import METHODS
from ptjax.algorithms.base import named
from ptjax.forward import ForwardOptions
from ptjax.models import lora as lora_module
from ptjax.models import spec
from ptjax.models.decoder import Decoder
from ptjax.models.load import read_config
from ptjax.models.lora import Lora
from ptjax.optim import state_shardings
from ptjax.step import StepOptions, new_guard, train_step
from ptjax.types import TrainState

_QWEN = {
    "model_type": "qwen2",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 32768,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
_LLAMA = {
    "model_type": "llama",
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "max_position_embeddings": 131072,
    "vocab_size": 128256,
    "head_dim": 128,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
MODELS = {
    "smollm2-135m-instruct": _LLAMA
    | dict(zip(SIZES, (576, 1536, 30, 9), strict=True))
    | {
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
        "rope_theta": 1e5,
        "max_position_embeddings": 8192,
    },
    "Qwen/Qwen2.5-0.5B-Instruct": _QWEN
    | dict(zip(SIZES, (896, 4864, 24, 14), strict=True))
    | {"num_key_value_heads": 2},
    "Qwen/Qwen2.5-1.5B-Instruct": _QWEN
    | dict(zip(SIZES, (1536, 8960, 28, 12), strict=True))
    | {"num_key_value_heads": 2},
    "Qwen/Qwen2.5-3B-Instruct": _QWEN
    | dict(zip(SIZES, (2048, 11008, 36, 16), strict=True))
    | {"num_key_value_heads": 2},
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA
    | dict(zip(SIZES, (4096, 14336, 32, 32), strict=True)),
    "meta-llama/Llama-3.1-70B-Instruct": _LLAMA
    | dict(zip(SIZES, (8192, 28672, 80, 64), strict=True)),
}
SEQUENCES_A_ROW = 16
"""Ragged chats that share a packed row: what [B, N, T] is made of beside the rows."""


def abstract_state(config, mesh, model, rows, options):
    """The optimizer's schedule and transformation, and the state as shapes with shardings."""
    dims = {**model.config.dims, "rank": model.lora.rank if model.lora else 0}

    def leaf(name, row):
        shape = spec.shape(row, dims)
        adapter = name not in model.table
        dtype = jnp.float32 if adapter else config.model.param_dtype
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.named(row.names, shape, mesh))

    params = {name: leaf(name, row) for name, row in rows.items()}
    names = set(prepare.trainable(config, params))
    schedule, tx = prepare.optimizer(config, rows, params, 1000)
    trained = {name: leaf for name, leaf in params.items() if name in names}
    everywhere = sharding.replicated(mesh)

    def place(shape, at):
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=at)

    def replicate(tree):
        return jax.tree.map(lambda x: place(x, everywhere), jax.eval_shape(lambda: tree))

    shardings = state_shardings(tx, trained, everywhere)
    state = TrainState(
        step=place(jax.ShapeDtypeStruct((), jnp.int32), everywhere),
        params=trained,
        frozen={name: leaf for name, leaf in params.items() if name not in names},
        opt_state=jax.tree.map(place, jax.eval_shape(tx.init, trained), shardings),
        guard=replicate(new_guard(options)),
    )
    return schedule, tx, state


def abstract_batch(config, mesh):
    """A packed batch's columns as shapes with shardings."""
    length = config.data.row_length or config.data.max_length
    rows = config.data.tokens_per_batch // length
    size = rows * SEQUENCES_A_ROW
    whole = (size, 1, length)
    columns = {
        "tokens": (whole, jnp.int32),
        "valid": (whole, jnp.bool_),
        "mask": (whole, jnp.float32),
        "weights": ((size, 1), jnp.float32),
        "pack": ((rows, length), jnp.int32),
    }
    at = NamedSharding(mesh, PartitionSpec(sharding.BATCH))
    return {k: jax.ShapeDtypeStruct(s, d, sharding=at) for k, (s, d) in columns.items()}


def compile_step(config, mesh, *, decoder=Decoder):
    """The config's train step, compiled for the mesh's devices.

    Args:
      config: of a model in `MODELS`.
      mesh: of devices that are there, or of a topology.
      decoder: the model's class.
    """
    lora = None
    if config.lora is not None:
        lora = Lora(**{k: v for k, v in config.lora.to_dict().items() if k != "adapter"})
    model = decoder(read_config(MODELS[config.model.source], config.model.source), lora)
    rows = model.table | (lora_module.rows(model.table, lora) if lora else {})
    options = StepOptions(accumulate=config.accumulate, ema=config.ema)
    schedule, tx, state = abstract_state(config, mesh, model, rows, options)
    step = functools.partial(
        train_step,
        model=model,
        bound=named(config.method, METHODS).bind(config.hparams.to_dict(), "config.hparams"),
        tx=tx,
        schedule=schedule,
        options=options,
        forward_options=ForwardOptions(prepare.compute(config), config.model.head_chunk),
    )
    shardings = jax.tree.map(lambda x: x.sharding, state)
    with jax.set_mesh(mesh):
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
        return jitted.lower(state, abstract_batch(config, mesh)).compile()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("topology", help="v5e:1x1, v5e:2x4, v5p:4x8x8, ...")
    parser.add_argument("config", help="configs/sft_v5e_8.py, or configs/sft_v5e_8.py:full")
    parser.add_argument("overrides", nargs="*", help="model.remat=dots, ...")
    options = parser.parse_args()
    config = configs.load(options.config)
    for given in options.overrides:
        configs.override(config, *given.split("=", 1))
    one_chip = {"chips_per_host_bounds": (1, 1, 1)} if options.topology.endswith(":1x1") else {}
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=options.topology, **one_chip
    )
    mesh = sharding.make_mesh(config.mesh.to_dict(), topology.devices)
    began = time.perf_counter()
    compiled = compile_step(config, mesh)
    memory = compiled.memory_analysis()
    gib = 2**30
    print(
        f"{options.config} {' '.join(options.overrides)} on {options.topology} {dict(mesh.shape)}: "
        f"arguments {memory.argument_size_in_bytes / gib:.2f} GiB, "
        f"temporaries {memory.temp_size_in_bytes / gib:.2f} GiB, "
        f"donated {memory.alias_size_in_bytes / gib:.2f} GiB, "
        f"peak {memory.peak_memory_in_bytes / gib:.2f} GiB a chip; "
        f"compiled in {time.perf_counter() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
