"""What methods on preference pairs share: their terms and what is measured of them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ptjax.algorithms.by_length import by_length
from ptjax.losses.kl import k3
from ptjax.losses.nll import nll
from ptjax.losses.pair import Pair, per_token
from ptjax.types import Batch, Mean, Outputs

SATURATED = 0.01
"""A pair whose gradient is weighted by less than this has nothing left to teach."""


def chosen_nll(outputs: Outputs, batch: Batch) -> Mean:
    """Negative log-likelihood of the chosen completions, over all their tokens in the batch."""
    tokens = batch["mask"][:, 0] * batch["weights"][:, :1]
    return Mean.of(nll(outputs.logps[:, 0]), tokens)


def a_token(pair: Pair) -> Pair:
    """The pair with a and b per token: the rewards of losses that divide by lengths."""
    return pair._replace(
        a=per_token(pair.a, pair.chosen_length), b=per_token(pair.b, pair.rejected_length)
    )


def pair_metrics(pair: Pair, beta: float, *, margin: float = 0.0) -> dict[str, Mean]:
    """Implied rewards of both sides, and the warning signs; each explained in docs/methods/dpo.md.

    Args:
      pair: log-ratios, or where there is no reference log-probs, [B].
      beta: what a log-ratio is multiplied by to be a reward.
      margin: how far apart the loss wants rewards at least.
    """
    chosen, rejected = beta * pair.a, beta * pair.b

    def mean(values: Array) -> Mean:
        return Mean.of(values.astype(jnp.float32), pair.weights)

    return {
        "rewards/chosen": mean(chosen),
        "rewards/rejected": mean(rejected),
        "rewards/margin": mean(chosen - rejected),
        "accuracy": mean(chosen > rejected),
        "logps/chosen": mean(pair.chosen_logps),
        "logps/rejected": mean(pair.rejected_logps),
        "saturated": mean(jax.nn.sigmoid(rejected - chosen + margin) < SATURATED),
    } | by_length(chosen, rejected, pair.chosen_length, pair.rejected_length, pair.weights)


def drift_metrics(outputs: Outputs, batch: Batch, pair: Pair) -> dict[str, Mean]:
    """How far the policy is from its reference on the data: `kl`, and `both_fall`."""
    fall = (pair.a < 0) & (pair.b < 0)
    return {"kl": drift(outputs, batch), "both_fall": _share(fall, pair.weights)}


def drift(outputs: Outputs, batch: Batch) -> Mean:
    """The mean over the data's tokens of exp(ref - lp) - (ref - lp) - 1 (Schulman's k3).

    It is an estimate of the divergence as far as the policy would write such answers itself.
    """
    return Mean.of(
        k3(outputs.logps, batch["ref_logps"]), batch["mask"] * batch["weights"][..., None]
    )


def _share(holds: Array, weights: Float[Array, " B"]) -> Mean:
    return Mean.of(holds.astype(jnp.float32), weights)
