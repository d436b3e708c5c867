"""Low-rank adapters: LoRA (2106.09685), rsLoRA (2312.03732), DoRA (2402.09353).

An adapter of kernel `layers.q` is the leaves `layers.q.lora_a` [layers, inputs..., rank] and
`layers.q.lora_b` [layers, rank, outputs...], and for DoRA `layers.q.dora_m` [layers, outputs...].
"""

import functools
import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ptjax.errors import UserError
from ptjax.models.families import CRITIC, SCALARS
from ptjax.models.quantised import Quantised
from ptjax.models.spec import Dims, Param, Table, init
from ptjax.sharding import active_parts, brought
from ptjax.types import Leaf, Params, Weights

ALL_LINEAR = r"layers\.(q|k|v|o|gate|up|down)"


@dataclass(frozen=True)
class Lora:
    """An adapter's settings.

    Attributes:
      rank: inner dimension r.
      alpha: the update is scaled by alpha / r (rsLoRA: alpha / √r).
      dropout: probability of zeroing an input of the adapter in training; experts' have none.
      targets: regex that a kernel's whole name matches, a critic's without `critic.`.
      rslora: scale by 1/√r.
      dora: learn each output's magnitude apart from its direction; experts' kernels cannot.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str = ALL_LINEAR
    rslora: bool = False
    dora: bool = False

    @property
    def scale(self) -> float:
        """What the low-rank product is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


def rows(table: Table, lora: Lora) -> dict[str, Param]:
    """The adapter's own rows of the table, for every kernel that the targets match.

    Heads have none: log-probs, scores and values are computed from a head's kernel alone. Nor have
    routers, which are as small as an adapter.

    Raises:
      UserError: the regex matches no kernel, or experts' with `dora` or `dropout`.
    """
    added: dict[str, Param] = {}
    kernels = [
        name
        for name, param in table.items()
        if param.is_kernel and "routes" not in param.names and name not in ("head", *SCALARS)
    ]
    for name in kernels:
        if not re.fullmatch(lora.targets, name.removeprefix(CRITIC)):
            continue
        param = table[name]
        if "experts" in param.stack and (lora.dora or lora.dropout):
            raise UserError(
                f"config.lora.targets {lora.targets!r} matches {name}: adapters of experts have "
                "neither dora nor dropout; set them to False and 0, or leave experts out"
            )
        stack = "".join(f"{axis} " for axis in param.stack)
        inputs, outputs = " ".join(param.inputs), " ".join(param.outputs)
        added[f"{name}.lora_a"] = Param(f"{stack}{inputs} -> rank", init="uniform")
        added[f"{name}.lora_b"] = Param(f"{stack}rank -> {outputs}", init="zeros")
        if lora.dora:
            added[f"{name}.dora_m"] = Param(f"{stack}{outputs}")
    if not added:
        raise UserError(
            f"config.lora.targets {lora.targets!r} matches none of: {', '.join(kernels)}"
        )
    return added


def add(params: Weights, table: Table, dims: Dims, lora: Lora, key: Array) -> Params:
    """New adapter leaves that leave the model as it is: B = 0, and DoRA's magnitudes those of W."""
    new = rows(table, lora)
    leaves = init(new, {**dims, "rank": lora.rank}, key)
    for name in new:
        if name.endswith(".dora_m"):
            kernel = name.removesuffix(".dora_m")
            leaves[name] = _magnitudes(params[kernel], table[kernel])
    return leaves


def _magnitudes(weight: Leaf, param: Param) -> Array:
    """`_norms` of a kernel as it is kept, a layer at a time where it is a stack."""
    if not param.stacked:
        return _norms(weight.astype(jnp.float32), param)
    one = _one_layer(param)
    return jax.lax.map(lambda layer: _norms(brought(layer).astype(jnp.float32), one), weight)


def _one_layer(param: Param) -> Param:
    """The row of a layer of a stack; experts stay stacked."""
    return param._replace(axes=param.axes.removeprefix("layers "))


def _norms(weight: Array, param: Param) -> Array:
    """The length of each output's column of a kernel."""
    first = len(param.stack)
    axes = tuple(range(first, first + len(param.inputs)))
    return jnp.sqrt(jnp.sum(weight * weight, axis=axes))


def contract(x: Array, kernel: Array) -> Array:
    """Contracts the axes of x [R, L, inputs...] after its second with the first of a kernel.

    Both are matrices while they are multiplied: on CPU the products of their gradients then need no
    transposed copies. Rows that a mesh cuts along their length are no matrix on any device: they
    would be gathered.
    """
    tokens = x.shape[:2] if active_parts("length") > 1 else (x.shape[0] * x.shape[1],)
    flat = x.reshape(*tokens, -1)
    out = flat @ kernel.reshape(flat.shape[-1], -1)
    return out.reshape(*x.shape[:2], *kernel.shape[x.ndim - 2 :])


def multiply(x: Array, kernel: Leaf) -> Array:
    """x · W in the dtype of x.

    A quantised kernel is dequantised again in the backward pass: kept for it, all layers' would
    stand there at once.
    """
    if isinstance(kernel, Quantised):
        product = jax.checkpoint(lambda x, w: contract(x, w.astype(x.dtype)), prevent_cse=False)
        return product(x, kernel)
    return contract(x, kernel.astype(x.dtype))


def adapted(
    layer: Weights, name: str, x: Array, out: Array, lora: Lora, key: Array | None
) -> Array:
    """x·W + scale · (x·A)·B, for DoRA times m / ‖W + scale·A·B‖; `out` is x·W."""
    a, b = layer[f"{name}.lora_a"].astype(x.dtype), layer[f"{name}.lora_b"].astype(x.dtype)
    inputs = x
    if key is not None and lora.dropout:
        keep = jax.random.bernoulli(key, 1.0 - lora.dropout, x.shape)
        inputs = jnp.where(keep, x / (1.0 - lora.dropout), 0).astype(x.dtype)
    update = contract(contract(inputs, a) * lora.scale, b)
    if f"{name}.dora_m" not in layer:
        return out + update
    weight = layer[name].astype(jnp.float32)
    moved = weight + lora.scale * jnp.tensordot(
        layer[f"{name}.lora_a"].astype(jnp.float32),
        layer[f"{name}.lora_b"].astype(jnp.float32),
        axes=1,
    )
    axes = tuple(range(x.ndim - 2))
    norm = jax.lax.stop_gradient(jnp.sqrt(jnp.sum(moved * moved, axis=axes)))
    return (out + update) * (layer[f"{name}.dora_m"] / norm).astype(x.dtype)


def merge_in_place(params: Params, table: Table, lora: Lora) -> None:
    """`merge` of a dict that holds the result when it is done: no second model beside it.

    Each kernel is gone when the next one is made, so long as nobody else holds it.
    """
    for name in [name for name in params if name in table]:
        parts = (name, f"{name}.lora_a", f"{name}.lora_b", f"{name}.dora_m")
        own = {part: params.pop(part) for part in parts if part in params}
        params |= jax.block_until_ready(merge(own, table, lora))


def merge(params: Weights, table: Table, lora: Lora) -> Params:
    """Folds every adapter into its kernel and leaves the adapters out.

    Quantised kernels are dequantised, those without an adapter too: what comes out computes what
    was trained, to the rounding of its dtype.
    """
    merged = {}
    for name, weight in params.items():
        if ".lora_" in name or name.endswith(".dora_m"):
            continue
        if f"{name}.lora_a" in params:
            parts = {part: f"{name}{part}" for part in ("", ".lora_a", ".lora_b", ".dora_m")}
            own = {f"kernel{part}": params[key] for part, key in parts.items() if key in params}
            weight = _layer_by_layer(own, table[name], lora)
        elif isinstance(weight, Quantised):
            weight = brought(weight).astype(weight.dtype)
        merged[name] = weight
    return merged


@functools.partial(jax.jit, static_argnums=(1, 2))
def _layer_by_layer(own: Weights, param: Param, lora: Lora) -> Array:
    """`_merged`, one layer of a stack at a time: what it makes in float32 is of one layer."""
    if not param.stacked:
        return _merged(brought(own), "kernel", param, lora)
    one = _one_layer(param)
    return jax.lax.map(lambda layer: _merged(brought(layer), "kernel", one, lora), own)


def _merged(params: Weights, name: str, param: Param, lora: Lora) -> Array:
    weight = params[name]
    a = params[f"{name}.lora_a"].astype(jnp.float32)
    b = params[f"{name}.lora_b"].astype(jnp.float32)

    def product(a: Array, b: Array) -> Array:
        return jnp.tensordot(a, b, axes=1)

    for _ in param.stack:
        product = jax.vmap(product)
    moved = weight.astype(jnp.float32) + lora.scale * product(a, b)
    if f"{name}.dora_m" in params:
        lead = len(param.stack)
        scale = params[f"{name}.dora_m"] / _norms(moved, param)
        scale = scale.reshape(scale.shape[:lead] + (1,) * len(param.inputs) + scale.shape[lead:])
        moved = moved * scale
    return moved.astype(weight.dtype)
