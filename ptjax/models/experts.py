"""A mixture of experts in the place of a layer's MLP; none has a capacity, so no token is dropped.

Shapes: R rows, L tokens a row, D embed, F hidden units, X experts, C experts that a token chooses;
on a device T tokens, M = T · C of them with their experts, sorted by expert.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from ptjax.models.config import ModelConfig
from ptjax.models.layers import ACTIVATIONS, PROJECTED, Layer
from ptjax.models.lora import Lora, contract
from ptjax.sharding import TOKENS, by_expert, local
from ptjax.types import Routing

_PREFIX = "experts."
_AXES = {
    "gate": ("experts", None, "mlp"),
    "up": ("experts", None, "mlp"),
    "down": ("experts", "mlp", None),
    "gate.lora_a": ("experts", None, None),
    "gate.lora_b": ("experts", None, "mlp"),
    "up.lora_a": ("experts", None, None),
    "up.lora_b": ("experts", None, "mlp"),
    "down.lora_a": ("experts", "mlp", None),
    "down.lora_b": ("experts", None, None),
}
"""How a layer's kernels are cut while they are used: the inputs and outputs of experts whole."""


def mixture(
    layer: Layer,
    x: Float[Array, "R L D"],
    valid: Bool[Array, "R L"],
    config: ModelConfig,
    lora: Lora | None,
    at: tuple[str, str | None] = TOKENS,
) -> tuple[Float[Array, "R L D"], Routing]:
    """Σ_e p_e · down_e(act(gate_e(x)) · up_e(x)) over the C experts of largest p (2401.04088, 2.1).

    p is the softmax over all experts' logits, in float32; of the chosen it is divided by their sum
    where `config.norm_topk` says so.

    Args:
      layer: one layer's parameters.
      x: tokens.
      valid: those that are no padding: padding goes to no expert.
      config: the model's.
      lora: the adapters' settings.
      at: the logical axes of rows and length.
    """
    with jax.default_matmul_precision("highest"):
        logits = contract(x.astype(jnp.float32), layer["router"].astype(jnp.float32))
    probs = jax.nn.softmax(logits)
    # Each device chooses for its own tokens: partitioners gather what top_k is given.
    best = functools.partial(jax.lax.top_k, k=config.top_k)
    weights, chosen = local(best, probs, inputs=[(*at, None)], output=(*at, None))
    if config.norm_topk:
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    chosen = jnp.where(valid[..., None], chosen, config.experts)
    routing = Routing(
        load=jnp.sum(chosen[..., None] == jnp.arange(config.experts), (0, 1, 2), jnp.float32),
        probs=jnp.sum(jnp.where(valid[..., None], probs, 0), (0, 1)),
    )
    kernels = {
        name.removeprefix(_PREFIX): leaf.astype(x.dtype)
        for name, leaf in layer.items()
        if name.startswith(_PREFIX)
    }
    run = functools.partial(_run, names=tuple(kernels), activation=config.activation, lora=lora)
    tokens = (x, chosen, weights.astype(x.dtype))
    axes = [_AXES[name] for name in kernels]
    return by_expert(run, tokens, list(kernels.values()), axes, at), routing


def _run(
    first: Int[Array, ""] | int,
    tokens: Sequence[Array],
    kernels: Sequence[Array],
    *,
    names: tuple[str, ...],
    activation: str,
    lora: Lora | None,
) -> Float[Array, "R L D"]:
    """What the experts from `first` on add to each token."""
    x, chosen, weights = tokens
    own = dict(zip(names, kernels, strict=True))
    count = len(own["gate"])
    here = chosen - first
    here = jnp.where((here >= 0) & (here < count), here, count).reshape(-1, chosen.shape[-1])
    order = jnp.argsort(here.reshape(-1), stable=True)
    places = jnp.argsort(order).reshape(here.shape)
    sizes = jnp.sum(here[..., None] == jnp.arange(count), (0, 1), jnp.int32)
    # What comes behind is of other experts or padding: the product says nothing of it.
    real = (jnp.arange(len(order)) < jnp.sum(sizes))[:, None]
    grouped = functools.partial(_grouped, own, sizes, lora)

    sorted_x = jnp.where(real, _dispatch(x.reshape(-1, x.shape[-1]), order, places), 0)
    hidden = ACTIVATIONS[activation](
        checkpoint_name(grouped("gate", sorted_x), PROJECTED)
    ) * checkpoint_name(grouped("up", sorted_x), PROJECTED)
    # Weighted before the last product, so that its result is not needed for the weights' gradient.
    hidden = jnp.where(real, hidden * weights.reshape(-1)[order][:, None], 0)
    out = jnp.where(real, grouped("down", hidden), 0)
    return _combine(out, order, places).reshape(x.shape)


def _grouped(
    kernels: Mapping[str, Array],
    sizes: Int[Array, " X"],
    lora: Lora | None,
    name: str,
    x: Float[Array, "M inputs"],
) -> Float[Array, "M outputs"]:
    """Each row times its expert's kernel, with the adapter where it has one."""
    out = jax.lax.ragged_dot(x, kernels[name], sizes)
    if f"{name}.lora_a" in kernels and lora is not None:
        inner = jax.lax.ragged_dot(x, kernels[f"{name}.lora_a"], sizes) * lora.scale
        out = out + jax.lax.ragged_dot(inner, kernels[f"{name}.lora_b"], sizes)
    return out


@jax.custom_vjp
def _dispatch(
    x: Float[Array, "T D"], order: Int[Array, " M"], places: Int[Array, "T C"]
) -> Float[Array, "M D"]:
    """A copy of each token for each of its experts, sorted. Its transpose is `_combine`.

    Told so, the backward pass gathers as well: it would scatter.
    """
    return x[order // places.shape[1]]


@jax.custom_vjp
def _combine(
    sorted_x: Float[Array, "M D"], order: Int[Array, " M"], places: Int[Array, "T C"]
) -> Float[Array, "T D"]:
    """The sum of each token's copies."""
    return jnp.sum(sorted_x[places], axis=1)


def _keep(function):
    return lambda x, order, places: (function(x, order, places), (order, places))


_dispatch.defvjp(_keep(_dispatch), lambda kept, g: (_combine(g, *kept), None, None))
_combine.defvjp(_keep(_combine), lambda kept, g: (_dispatch(g, *kept), None, None))
