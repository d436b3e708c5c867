"""The load-balancing loss of a mixture of experts (2101.03961, equations 4-6).

Shapes: layers and experts of the model.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def expert_shares(
    load: Float[Array, "layers experts"], tokens: Float[Array, ""]
) -> Float[Array, " experts"]:
    """f_e: of all layers' tokens, the part that went to expert e; Σ f_e is a token's experts.

    Args:
      load: tokens that went to each expert.
      tokens: how many there are.
    """
    return jnp.sum(load, axis=0) / (load.shape[0] * jnp.maximum(tokens, 1))


def load_balancing(
    shares: Float[Array, " experts"], probs: Float[Array, "layers experts"]
) -> Float[Array, ""]:
    """E · Σ_e f_e · P_e, times the number of tokens, P_e the router's mean probability of e.

    As transformers has it, all layers are taken together: f and P are means over tokens and layers.
    It is C, the number of a token's experts, where all are loaded alike. f has no gradient.

    Args:
      shares: f over the whole batch, `expert_shares`.
      probs: the router's probabilities, summed over tokens: of a part of the batch its part.
    """
    layers, experts = probs.shape
    return experts * jnp.sum(shares * jnp.sum(probs, axis=0)) / layers
