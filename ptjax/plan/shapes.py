"""A run as shapes: what `ptjax.prepare` makes of a config, with no array in it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ptjax import prepare, sharding
from ptjax.algorithms import METHODS
from ptjax.algorithms.base import Bound, named
from ptjax.config import Config, check
from ptjax.errors import UserError, check_keys
from ptjax.job import BUFFER, all_rows, staged
from ptjax.models import spec
from ptjax.models.decoder import Decoder
from ptjax.models.families import SCALARS
from ptjax.models.lora import Lora
from ptjax.models.quantised import outline
from ptjax.models.spec import Param
from ptjax.optim import state_shardings
from ptjax.passes import Passes, forward_options, make_passes, one_pass, step_options
from ptjax.plan.architectures import architecture
from ptjax.plan.batches import Shapes, columns
from ptjax.reference import check_reference, is_base
from ptjax.rollouts import check_rollout, sizes
from ptjax.stages.rollout import Sizes
from ptjax.step import new_guard
from ptjax.types import TrainState, column_dtypes

Leaves = dict[str, Any]
"""Shapes with shardings, by name; of a quantised kernel a `Quantised` of them."""
_STEPS = 1000
"""Of a run whose length is not known: no program depends on it."""


@dataclass(frozen=True)
class Job:
    """A run as shapes.

    Attributes:
      config: the whole config.
      mesh: of devices, or of a topology's.
      bound: the method.
      model: the policy.
      rows: the table's rows of all its leaves.
      state: shapes with shardings.
      reference: the model that stages ask beside the policy, and all its leaves.
      own: those of the reference's leaves that are not the policy's.
      rollout: how much is sampled, where answers are.
      whole: shapes of a batch behind its stages.
      step: shapes of what an optimizer step is given of it.
      passes: the jitted functions.
      reference_pass: that of the reference.
    """

    config: Config
    mesh: Mesh
    bound: Bound
    model: Decoder
    rows: dict[str, Param]
    state: TrainState
    reference: tuple[Decoder, Leaves] | None
    own: Leaves
    rollout: Sizes | None
    whole: Shapes
    step: Shapes
    passes: Passes
    reference_pass: Any


def job(config: Config, mesh: Mesh, *, decoder: type[Decoder] = Decoder) -> Job:
    """Builds a run from shapes alone.

    Args:
      config: the whole config; paths of data and rewards may be missing.
      mesh: where it would run.
      decoder: the model's class.

    Raises:
      UserError: anything in the config that cannot be.
    """
    check(config)
    _check_host(config, mesh)
    algorithm = named(config.method, METHODS)
    bound = algorithm.bind(prepare.hyperparameters(config, algorithm), "config.hparams")
    asked = any(stage.reference for stage in bound.stages)
    follows = any(stage.reference and stage.begin for stage in bound.stages)
    check_reference(config, asked, follows, taught="divergence" in bound.needs)
    prepare.check_method(config, bound)
    model = decoder(architecture(config.model.source), _lora(config), bound.head)
    rows = model.rows
    params = _leaves(config, model, rows, mesh, config.model.base)
    schedule, tx = prepare.optimizer(config, rows, params, config.steps or _STEPS)
    shards = sharding.batch_shards(mesh)
    blocks = shards * config.accumulate
    data = columns(config, bound.algorithm.data, shards=shards)
    rollout = _rollout(config, bound, model, data.longest, shards)
    state = _state(config, bound, params, tx, mesh)
    reference, own = None, Leaves()
    if asked and not follows:
        reference, own = _reference(config, model, state, mesh)
    embed = reference[0].config.embed if reference else None
    added = staged(bound.stages, rollout, embed, data.shapes)
    both, parts, once = data.shapes | added, 1, data.prompts_once
    if rollout is not None and rollout.updates > 1:
        parts = rollout.minibatches
        kept = batch(added, mesh, config.model.dtype)
        state = replace(state, carry={**state.carry, BUFFER: kept})
    options = forward_options(config, bound, rollout, prompts_once=once)
    return Job(
        config=config,
        mesh=mesh,
        bound=bound,
        model=model,
        rows=rows,
        state=state,
        reference=reference,
        own=own,
        rollout=rollout,
        whole=all_rows(rollout, both, blocks, prompts_once=once),
        step=all_rows(rollout, both, blocks, parts, prompts_once=once),
        passes=make_passes(config, bound, model, tx, schedule, state, options),
        reference_pass=one_pass(config, reference[0], options) if reference else None,
    )


def _check_host(config: Config, mesh: Mesh) -> None:
    """Of a GPU that is not there jax does not know the memory of its host."""
    asked = [part for part in ("optim", "model") if config[part].offload]
    at = sharding.on_host(sharding.replicated(mesh), offload=True)
    if asked and at.memory_kind != sharding.HOST:
        raise UserError(
            f"config.{asked[0]}.offload: jax plans it for GPUs at hand alone; set it to False: the "
            "page tells apart the bytes that would leave the device"
        )


def batch(shapes: Shapes, mesh: Mesh, hidden: str) -> Leaves:
    """Columns of these shapes, over the batch axes; a teacher's hidden states in this dtype."""
    dtypes = column_dtypes(hidden)
    at = NamedSharding(mesh, PartitionSpec(sharding.batch_axes(mesh)))
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.dtype(dtypes[name]), sharding=at)
        for name, shape in shapes.items()
    }


def _rollout(
    config: Config, bound: Bound, model: Decoder, prompt: int, shards: int
) -> Sizes | None:
    """How much is sampled, the longest prompt of so many tokens; rewards may be missing."""
    if not any(stage.sequences for stage in bound.stages):
        return None
    if any(stage.judged for stage in bound.stages) and not config.rewards:
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.rewards = [{"name": "length", "target": 1}]
    judges = check_rollout(config, bound, shards)
    room = model.config.max_positions
    if prompt >= room:
        raise UserError(
            f"config.data.max_length = {prompt} leaves no room for an answer in the model's {room} "
            "positions"
        )
    return sizes(config, judges, min(prompt + config.rollout.max_tokens, room))


def _lora(config: Config) -> Lora | None:
    if config.lora is None:
        return None
    given = config.lora.to_dict()
    if given.pop("adapter", None) is not None:
        raise UserError(
            "config.lora.adapter: a plan reads no adapter; unset it, and set config.lora.rank and "
            "targets to its own"
        )
    check_keys(given, Lora.__dataclass_fields__, "config.lora")
    return Lora(**given)


def _leaves(
    config: Config, model: Decoder, rows: Mapping[str, Param], mesh: Mesh, base: str = "none"
) -> Leaves:
    """Every leaf of a model; adapters and scalar heads are float32 always.

    A base that is quantised has codes and scales in its kernels' place.
    """
    dims = {**model.config.dims, "rank": model.lora.rank if model.lora else 0}

    def leaf(name: str, row: Param) -> Any:
        shape = spec.shape(row, dims)
        wide = name not in model.table or name in SCALARS
        dtype = jnp.float32 if wide else config.model.param_dtype
        kept = None if wide else outline(row, shape, base, config.model.param_dtype, mesh)
        if kept is None:
            at = sharding.named(row.names, shape, mesh)
            kept = jax.ShapeDtypeStruct(shape, dtype, sharding=at)
        return jax.tree.map(away, kept) if name in model.table and row.of_layers else kept

    def away(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        at = sharding.on_host(leaf.sharding, config.model.offload)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at)

    return {name: leaf(name, row) for name, row in rows.items()}


def _state(
    config: Config, bound: Bound, params: Leaves, tx: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The state before the first step."""
    names = set(prepare.trainable(config, params))
    trained = {name: leaf for name, leaf in params.items() if name in names}
    everywhere = sharding.replicated(mesh)

    def place(shape: Any, at: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=at)

    def like_trained(tree: Any) -> Any:
        """What has a trained leaf's name and shape lies where that does, all else everywhere."""

        def at(path: tuple[Any, ...], leaf: Any) -> jax.ShapeDtypeStruct:
            found = trained.get(getattr(path[-1], "key", "") if path else "")
            if found is None or found.shape != leaf.shape:
                return place(leaf, everywhere)
            return place(leaf, found.sharding)

        return jax.tree.map_with_path(at, tree)

    ema = None
    if config.ema:
        ema = {
            name: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding)
            for name, leaf in trained.items()
        }
    carry = {s.name: jax.eval_shape(s.begin, trained) for s in bound.stages if s.begin}
    shardings = state_shardings(tx, trained, everywhere, offload=config.optim.offload)
    return TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere),
        params=trained,
        frozen={name: leaf for name, leaf in params.items() if name not in names},
        opt_state=jax.tree.map(place, jax.eval_shape(tx.init, trained), shardings),
        guard=like_trained(jax.eval_shape(lambda: new_guard(step_options(config)))),
        ema=ema,
        carry=like_trained(carry),
    )


def _reference(
    config: Config, model: Decoder, state: TrainState, mesh: Mesh
) -> tuple[tuple[Decoder, Leaves], Leaves]:
    """The reference with all its leaves, and those of them that are its own."""
    source = config.reference.source
    if source is not None:
        other = Decoder(architecture(source))
        own = _leaves(config, other, other.table, mesh)
        return (other, own), own
    if is_base(config, state.params):
        return (replace(model, lora=None), dict(state.frozen)), {}
    own = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in state.params.items()
    }
    return (model, {**state.frozen, **own}), own
