"""The parts of a decoder layer, over a flat dict of one layer's parameters.

Shapes: R rows, L tokens a row, D embed, H heads, K key heads, E head_dim.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from ptjax.models.config import ModelConfig
from ptjax.models.lora import Lora, adapted, multiply
from ptjax.types import Weights

Layer = Weights
PROJECTED = "projected"
"""The name under which a projection is known to the rematerialisation policies."""
CARRIED = "carried"
"""That of the hidden states which a layer is given."""
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


def rms_norm(x: Array, weight: Array, *, eps: float, offset: float, axes: int = 1) -> Array:
    """x / rms(x) · (weight + offset) over the last `axes` axes, in float32 (1910.07467)."""
    over = tuple(range(-axes, 0))
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=over, keepdims=True) + eps)
    return (wide * scale * (weight.astype(jnp.float32) + offset)).astype(x.dtype)


def project(layer: Layer, name: str, x: Array, lora: Lora | None, key: Array | None) -> Array:
    """x · W + b, with the kernel's adapter where it has one.

    Args:
      layer: one layer's parameters; `name` is a kernel, `name.bias` its bias.
      name: the kernel.
      x: [R, L, inputs...]: trailing axes are those the kernel contracts.
      lora: the adapter's settings.
      key: randomness of the adapter's dropout; None to leave it out.
    """
    out = multiply(x, layer[name])
    if f"{name}.lora_a" in layer and lora is not None:
        out = adapted(layer, name, x, out, lora, key)
    if f"{name}.bias" in layer:
        out = out + layer[f"{name}.bias"].astype(x.dtype)
    return checkpoint_name(out, PROJECTED)


def rotate(
    x: Float[Array, "R L H E"], cos: Float[Array, "R L half"], sin: Float[Array, "R L half"]
) -> Float[Array, "R L H E"]:
    """Rotary embedding, halves and not pairs rotated (2104.09864, in Hugging Face's order)."""
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = cos[:, :, None].astype(x.dtype), sin[:, :, None].astype(x.dtype)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def rotary_tables(
    config: ModelConfig, positions: Int[Array, "R L"]
) -> tuple[Float[Array, "kinds R L half"], Float[Array, "kinds R L half"]]:
    """cos and sin of every kind of rotary embedding; the last kind rotates by nothing (NoPE)."""
    inv_freq = jnp.array([rope.inv_freq for rope in config.ropes], jnp.float32)
    factor = jnp.array([rope.factor for rope in config.ropes], jnp.float32)
    if -1 in config.rope_kind:
        inv_freq = jnp.concatenate([inv_freq, jnp.zeros_like(inv_freq[:1])])
        factor = jnp.append(factor, 1.0)
    angles = positions.astype(jnp.float32)[None, :, :, None] * inv_freq[:, None, None, :]
    factor = factor[:, None, None, None]
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def mlp(
    layer: Layer, x: Array, config: ModelConfig, lora: Lora | None, keys: tuple[Array | None, ...]
) -> Array:
    """Gated feed-forward: down(act(gate(x)) · up(x)) (2002.05202)."""
    gate = project(layer, "gate", x, lora, keys[0])
    up = project(layer, "up", x, lora, keys[1])
    return project(layer, "down", ACTIVATIONS[config.activation](gate) * up, lora, keys[2])


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeroes entries with probability `rate`, rescaling the rest; the identity without a key."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)
