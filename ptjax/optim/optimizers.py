"""Optimizers from optax, chosen by name; masks follow the table's axes."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from optax.contrib import MuonDimensionNumbers, muon

from ptjax.errors import UserError, did_you_mean
from ptjax.models.spec import Param
from ptjax.optim.rounding import ROUNDINGS, rounded
from ptjax.optim.schedules import Schedule
from ptjax.optim.state_bits import BITS, in_8_bits, is_scale
from ptjax.sharding import brought, on_host
from ptjax.types import Params

OPTIMIZERS = ("adamw", "adafactor", "lion", "muon", "sgd")
FACTORED = 128
"""Adafactor keeps the second moments of a matrix with a shorter side whole."""


def make_optimizer(
    rows: Mapping[str, Param],
    learning_rate: Schedule,
    *,
    name: str = "adamw",
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
    b1: float = 0.9,
    b2: float | None = None,
    eps: float = 1e-8,
    momentum: float = 0.9,
    state_bits: int = 32,
    rounding: str = "nearest",
    seed: int = 0,
    offload: bool = False,
) -> optax.GradientTransformation:
    """The gradient transformation over the trainable leaves.

    Args:
      rows: the trainable leaves' rows; kernels and embeddings decay, norms and biases do not.
      learning_rate: from `make_schedule`.
      name: one of `OPTIMIZERS`. Muon orthogonalises each layer's kernels, updates scaled to Adam's
        (2502.16982), and leaves embeddings, heads, norms and biases to AdamW. Adafactor's steps are
        relative to the root mean square of a layer's parameter.
      weight_decay: decoupled, times the learning rate.
      clip_norm: the gradient's largest global norm; None for no limit.
      b1: of adamw and muon's AdamW the decay of the first moment; of lion the share that its
        momentum has in the direction, the rest is the gradient's.
      b2: of adamw and muon's AdamW the decay of the second moment, None for 0.999; of lion that of
        its momentum, None for 0.99 (2302.06675, algorithm 2).
      eps: added to the root of the second moment.
      momentum: of sgd and muon.
      state_bits: 8 keeps the moments of kernels and embeddings in blocks of 8 bits (2110.02861).
      rounding: of bfloat16 parameters, one of `rounding.ROUNDINGS` (2010.06192).
      seed: of stochastic rounding.
      offload: whether the state may lie in the host's memory: see `state_shardings`.
    """
    if name not in OPTIMIZERS:
        raise UserError(f"config.optim.name: unknown {name!r}{did_you_mean(name, OPTIMIZERS)}")
    if state_bits not in BITS:
        raise UserError(f"config.optim.state_bits = {state_bits}: it must be 8 or 32")
    if state_bits == 8 and name == "adafactor":
        raise UserError(
            "config.optim.state_bits = 8: adafactor keeps no moment of a parameter's size; set 32"
        )
    if rounding not in ROUNDINGS:
        hint = did_you_mean(rounding, ROUNDINGS)
        raise UserError(f"config.optim.rounding: unknown {rounding!r}{hint}")
    mask = {key: row.is_kernel or "vocab" in row.names for key, row in rows.items()}
    if b2 is None:
        b2 = 0.99 if name == "lion" else 0.999
    adam = optax.scale_by_adam(b1, b2, eps)
    directions = {
        "adamw": lambda: adam,
        "adafactor": lambda: _adafactor(rows),
        "lion": lambda: optax.scale_by_lion(b1, b2),
        "muon": lambda: _muon(rows, momentum, otherwise=adam),
        "sgd": lambda: optax.trace(momentum) if momentum else optax.identity(),
    }
    direction = directions[name]()
    tx = optax.chain(
        direction if state_bits == 32 else in_8_bits(direction, rows),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )
    if clip_norm is not None:
        tx = optax.chain(optax.clip_by_global_norm(clip_norm), tx)

    def init(params: optax.Params) -> optax.OptState:
        return tx.init(_wide(params))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        return tx.update(updates, state, _wide(params))

    made = optax.GradientTransformation(init, update)
    made = made if rounding == "nearest" else rounded(made, rounding, seed)
    return _brought(made) if offload else made


def _brought(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The transformation, its state brought to the devices for the update and put back after it."""

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, after = tx.update(updates, brought(state), params)

        def put_back(leaf: Any, before: Any) -> Any:
            return jax.device_put(leaf, jax.typeof(before).memory_space)

        return updates, jax.tree.map(put_back, after, state)

    return optax.GradientTransformation(tx.init, update)


def _wide(params: Any) -> Any:
    """Parameters in float32, as gradients are: the state's dtypes then never change."""
    return jax.tree.map(lambda p: p.astype(jnp.float32), params)


def _adafactor(rows: Mapping[str, Param]) -> optax.GradientTransformation:
    """Adafactor's direction (1804.04235, algorithm 4), of each layer's matrix by itself.

    optax's own takes a stack of layers for one parameter: it would factor along the two largest of
    its axes, and clip and scale all layers alike. A rate of -1 leaves its directions as they are.
    """

    def rule(key: str, leaf: Any) -> tuple[Any, tuple[int, ...]]:
        """optax's transformation for a leaf, and the shape to do it in."""
        row, matrix = rows[key], matrix_shape(rows[key], leaf.shape)
        factored = min(matrix, default=0) >= FACTORED
        tx: Any = optax.adafactor(-1.0, min_dim_size_to_factor=FACTORED, factored=factored)
        for _ in row.stack:
            tx = optax.GradientTransformation(jax.vmap(tx.init), jax.vmap(tx.update))
        return tx, leaf.shape[: len(row.stack)] + matrix if factored else leaf.shape

    def init(params: Any) -> dict[str, Any]:
        state = {}
        for key, leaf in params.items():
            tx, shape = rule(key, leaf)
            state[key] = tx.init(leaf.reshape(shape))
        return state

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Params, dict[str, Any]]:
        directions, after = {}, {}
        for key, leaf in params.items():
            tx, shape = rule(key, leaf)
            given = updates[key].reshape(shape), state[key], leaf.reshape(shape)
            direction, after[key] = tx.update(*given)
            directions[key] = direction.reshape(leaf.shape)
        return directions, after

    return optax.GradientTransformation(init, update)


def matrix_shape(row: Param, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A layer's kernel as inputs x outputs, an embedding as it is; () for what is no matrix."""
    if not row.is_kernel:
        return shape if "vocab" in row.names else ()
    sizes = shape[len(row.stack) :]
    inputs = len(row.inputs)
    return math.prod(sizes[:inputs]), math.prod(sizes[inputs:])


def _muon(
    rows: Mapping[str, Param], momentum: float, otherwise: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Muon's direction for kernels, another one for all other leaves.

    optax's own would decay Muon's leaves alone, and run Nesterov's Adam on the rest; a rate of -1
    leaves its directions as they are.
    """
    axes: Any = {key: muon_axes(row) for key, row in rows.items()}
    kernels = muon(-1.0, beta=momentum, muon_weight_dimension_numbers=axes, consistent_rms=0.2)
    labels = {key: "muon" if axes[key] else "adam" for key in rows}
    return optax.partition({"muon": kernels, "adam": otherwise}, labels)


def muon_axes(row: Param) -> MuonDimensionNumbers | None:
    """The dimensions of a leaf's matrix that Muon orthogonalises; None leaves it to AdamW."""
    if not row.is_kernel or {"vocab", "labels"} & set(row.names):
        return None
    place = row.names.index
    return MuonDimensionNumbers(
        tuple(place(axis) for axis in row.inputs), tuple(place(axis) for axis in row.outputs)
    )


def state_shardings(
    tx: optax.GradientTransformation,
    params: Mapping[str, Any],
    otherwise: jax.sharding.Sharding,
    *,
    offload: bool = False,
) -> Any:
    """Shardings for the optimizer's state: what has a parameter's shape lies where that does.

    Scales of blocks lie there too, but along axes that have too few of them for that.

    Args:
      tx: the transformation.
      params: arrays or shape structs with shardings.
      otherwise: for counts and for statistics of other shapes.
      offload: whether what has a parameter's shape, and scales, lie in the host's memory.
    """
    shapes = jax.eval_shape(tx.init, dict(params))

    def place(path: tuple[Any, ...], leaf: Any) -> jax.sharding.Sharding:
        named = [params[part.key] for part in path if getattr(part, "key", None) in params]
        if not named:
            return otherwise
        if leaf.shape == named[0].shape:
            return on_host(named[0].sharding, offload)
        at = _of_blocks(named[0], leaf) if is_scale(path) else None
        return otherwise if at is None else on_host(at, offload)

    return jax.tree.map_with_path(place, shapes)


def _of_blocks(param: Any, scale: Any) -> jax.sharding.Sharding:
    """A parameter's sharding for the scales of its blocks, without what does not divide them."""
    mesh, spec = param.sharding.mesh, param.sharding.spec
    spec = (*spec, *(None,) * (len(scale.shape) - len(spec)))

    def part(size: int, axes: Any) -> Any:
        names = (axes,) if isinstance(axes, str) else axes or ()
        return axes if size % math.prod(mesh.shape[name] for name in names) == 0 else None

    return NamedSharding(mesh, PartitionSpec(*map(part, scale.shape, spec)))
