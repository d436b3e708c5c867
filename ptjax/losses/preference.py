"""Losses of preference pairs against a reference: one value a pair.

a and b are the log-ratios log p / p_ref of the chosen and the rejected completion, D = a - b,
s the sigmoid, ls its logarithm, β the strength of the implied reward β log p / p_ref, in 1/nat.
`PAIR_LOSSES[name](pair, beta=..., ...)`; the further keywords of each are `options(name)`.
"""

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid
from jaxtyping import Array, Float

from ptjax.losses.pair import Pair, per_token, smoothed
from ptjax.losses.preference_sides import apo_down, apo_zero, bco_pair, nca_pair, sppo_hard
from ptjax.losses.preference_sorted import aot, aot_unpaired


def sigmoid(pair: Pair, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Float[Array, "*B"]:
    """L = -(1 - e) ls(βD) - e ls(-βD): DPO, and with e > 0 conservative DPO.

    DPO: 2305.18290, equation 7. cDPO (Mitchell 2023) trusts a label with probability 1 - e.

    Args:
      pair: reads a, b.
      beta: β.
      label_smoothing: e, in [0, 0.5).
    """
    return smoothed(beta * (pair.a - pair.b), label_smoothing)


def robust(pair: Pair, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Float[Array, "*B"]:
    """L = [-(1 - e) ls(βD) + e ls(-βD)] / (1 - 2e): unbiased where a share e of labels is flipped.

    rDPO (2403.00409). Not bounded below for e > 0.

    Args:
      pair: reads a, b.
      beta: β.
      label_smoothing: e, in [0, 0.5).
    """
    z = beta * (pair.a - pair.b)
    clean, flipped = -log_sigmoid(z), -log_sigmoid(-z)
    return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def hinge(pair: Pair, *, beta: float = 0.1) -> Float[Array, "*B"]:
    """L = max(0, 1 - βD): SLiC-HF (2305.10425) on normalised likelihoods.

    Args:
      pair: reads a, b.
      beta: β; the margin is 1/β nats.
    """
    return jax.nn.relu(1 - beta * (pair.a - pair.b))


def ipo(pair: Pair, *, beta: float = 0.1, length_normalized: bool = True) -> Float[Array, "*B"]:
    """L = (a/n_c - b/n_r - 1/(2β))²: a margin to reach, not to exceed.

    IPO (2310.12036, equation 17, where β is τ).

    Args:
      pair: reads a, b, lengths.
      beta: β.
      length_normalized: divide by lengths n (TRL); else sums, as the paper writes it (OpenRLHF).
    """
    margin = _margin_per_token(pair) if length_normalized else pair.a - pair.b
    return jnp.square(margin - 1 / (2 * beta))


def exo_pair(pair: Pair, *, beta: float = 0.1, label_smoothing: float = 1e-3) -> Float[Array, "*B"]:
    """L = s(βD) [ls(βD) - log(1 - e)] + s(-βD) [ls(-βD) - log e]: reverse KL to the labels.

    EXO (2402.00856, equation 16): the distribution of the preference is that of the label,
    (1 - e, e), in the mode-seeking direction.

    Args:
      pair: reads a, b.
      beta: β.
      label_smoothing: e, in (0, 0.5).
    """
    z = beta * (pair.a - pair.b)
    right = jax.nn.sigmoid(z) * (log_sigmoid(z) - jnp.log1p(-label_smoothing))
    wrong = jax.nn.sigmoid(-z) * (log_sigmoid(-z) - jnp.log(label_smoothing))
    return right + wrong


def discopop(pair: Pair, *, beta: float = 0.1, tau: float = 0.05) -> Float[Array, "*B"]:
    """L = (1 - w)(-ls(z)) + w exp(-z), z = βD, w = s(z/τ): found by search over programs.

    DiscoPOP (2406.08414, equation 5): logistic where the pair is ranked wrong, exponential where
    it is ranked right.

    Args:
      pair: reads a, b.
      beta: β.
      tau: τ, the width of the passage between both; at most 1.
    """
    z = beta * (pair.a - pair.b)
    blended = jnp.exp(log_sigmoid(z / tau) - z)  # w exp(-z), where exp(-z) alone overflows
    return jax.nn.sigmoid(-z / tau) * -log_sigmoid(z) + blended


def sigmoid_norm(pair: Pair, *, beta: float = 0.1) -> Float[Array, "*B"]:
    """L = -ls(β(a/n_c - b/n_r)): DPO on log-ratios per token (2411.15124).

    Args:
      pair: reads a, b, lengths.
      beta: β; of the order of the length times what `sigmoid` takes.
    """
    return -log_sigmoid(beta * _margin_per_token(pair))


def _margin_per_token(pair: Pair) -> Array:
    return per_token(pair.a, pair.chosen_length) - per_token(pair.b, pair.rejected_length)


PAIR_LOSSES: dict[str, Callable[..., Array]] = {
    "sigmoid": sigmoid,
    "robust": robust,
    "hinge": hinge,
    "ipo": ipo,
    "exo_pair": exo_pair,
    "nca_pair": nca_pair,
    "bco_pair": bco_pair,
    "sppo_hard": sppo_hard,
    "aot": aot,
    "aot_unpaired": aot_unpaired,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "discopop": discopop,
    "sigmoid_norm": sigmoid_norm,
}
"""Losses of a pair by name; all take `beta`."""

COUPLED = frozenset({"aot", "aot_unpaired"})
"""Those whose value for one pair depends on the batch's other pairs."""

F_DIVERGENCE_LOSSES = (
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "exo_pair",
    "robust",
    "discopop",
)
"""Those that take f-divergences: they see a and b in a difference only."""


def options(name: str) -> tuple[str, ...]:
    """The keywords that a loss of `PAIR_LOSSES` takes beside `beta`."""
    parameters = inspect.signature(PAIR_LOSSES[name]).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "beta")
