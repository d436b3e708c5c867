"""How a mixture of experts spreads the tokens of a whole batch: for its loss and its metrics."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ptjax.forward import ForwardOptions, forward, micro_key, split
from ptjax.losses.router import expert_shares, load_balancing
from ptjax.models.decoder import Decoder
from ptjax.types import Batch, Mean, Params, Routing


def shares_of(
    model: Decoder,
    params: Params,
    batch: Batch,
    tokens: Float[Array, ""],
    *,
    accumulate: int,
    options: ForwardOptions,
    key: Array | None,
) -> Float[Array, " experts"]:
    """f of the load-balancing loss over all micro-batches, by a forward pass over each.

    Args:
      model: a mixture of experts.
      params: all leaves.
      batch: the whole.
      tokens: how many it has, `ptjax.forward.computed`.
      accumulate: micro-batches.
      options: of the pass.
      key: of the step, so that the pass is the one that is differentiated.
    """

    def load(scanned: tuple[Array, Batch]) -> Array:
        index, micro = scanned
        own = micro_key(key, index)
        return forward(
            model, params, micro, fields=("routing",), options=options, key=own
        ).routing.load

    loads = jax.lax.map(load, (jnp.arange(accumulate), split(batch, accumulate)))
    return jax.lax.stop_gradient(expert_shares(jnp.sum(loads, axis=0), tokens))


def routing_metrics(routing: Routing | None, tokens: Float[Array, ""]) -> dict[str, Mean]:
    """What the routers did with a whole batch, as metrics; none without experts.

    Args:
      routing: of the whole batch.
      tokens: how many it has.
    """
    if routing is None:
        return {}
    load, probs = routing
    each = load / jnp.maximum(jnp.sum(load, axis=1, keepdims=True), 1)
    one = jnp.float32(1)
    return {
        "moe/aux": Mean(load_balancing(expert_shares(load, tokens), probs), tokens),
        "moe/most_loaded": Mean(jnp.max(each), one),
        "moe/idle": Mean(jnp.mean(load == 0, dtype=jnp.float32), one),
    }
