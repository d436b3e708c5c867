"""Preference pairs without a reference: CPO, SimPO, AlphaPO, ORPO."""

from jaxtyping import Array

from ptjax.algorithms.base import Algorithm, Terms
from ptjax.algorithms.pairs import a_token, chosen_nll, pair_metrics
from ptjax.errors import UserError
from ptjax.forward import behind_first
from ptjax.losses import reference_free as losses
from ptjax.losses.pair import Pair
from ptjax.types import Batch, Mean, Outputs


def cpo(
    outputs: Outputs,
    batch: Batch,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    cpo_alpha: float = 1.0,
) -> tuple[Terms, dict[str, Mean]]:
    """Contrastive preference optimisation (2401.08417, equation 5): `losses.cpo` + α · NLL(chosen).

    Args:
      outputs: `logps`.
      batch: `mask`, `weights`; two sequences each, chosen first.
      beta: β, in 1/nat.
      label_smoothing: e, the share of labels held to be wrong.
      cpo_alpha: α, weight of the chosen answers' likelihood, a mean over tokens.
    """
    pair = _pair(outputs, batch)
    values = losses.cpo(pair, beta=beta, label_smoothing=label_smoothing)
    return _terms(values, pair, outputs, batch, cpo_alpha), pair_metrics(pair, beta)


def simpo(
    outputs: Outputs,
    batch: Batch,
    *,
    beta: float = 2.0,
    gamma_beta_ratio: float = 0.5,
    label_smoothing: float = 0.0,
    cpo_alpha: float = 0.0,
) -> tuple[Terms, dict[str, Mean]]:
    """SimPO (2405.14734, equation 6): mean log-probs a token, and a margin γ to reach.

    Args:
      outputs: `logps`.
      batch: `mask`, `weights`; two sequences each, chosen first.
      beta: β, in tokens per nat.
      gamma_beta_ratio: γ/β, in nats per token.
      label_smoothing: e, the share of labels held to be wrong.
      cpo_alpha: weight of the chosen answers' likelihood: CPO-SimPO where above 0.
    """
    pair = _pair(outputs, batch)
    values = losses.simpo(
        pair, beta=beta, gamma_beta_ratio=gamma_beta_ratio, label_smoothing=label_smoothing
    )
    terms = _terms(values, pair, outputs, batch, cpo_alpha)
    return terms, pair_metrics(a_token(pair), beta, margin=beta * gamma_beta_ratio)


def alphapo(
    outputs: Outputs,
    batch: Batch,
    *,
    beta: float = 2.0,
    gamma_beta_ratio: float = 0.5,
    alpha: float = 0.25,
    label_smoothing: float = 0.0,
    cpo_alpha: float = 0.0,
) -> tuple[Terms, dict[str, Mean]]:
    """AlphaPO (2501.03884): SimPO with the reward (1 - p^-α)/α in the place of log p.

    Args:
      outputs: `logps`.
      batch: `mask`, `weights`; two sequences each, chosen first.
      beta: β.
      gamma_beta_ratio: γ/β.
      alpha: α, not 0.
      label_smoothing: e, the share of labels held to be wrong.
      cpo_alpha: weight of the chosen answers' likelihood.
    """
    pair = _pair(outputs, batch)
    values = losses.alphapo(
        pair,
        beta=beta,
        gamma_beta_ratio=gamma_beta_ratio,
        alpha=alpha,
        label_smoothing=label_smoothing,
    )
    terms = _terms(values, pair, outputs, batch, cpo_alpha)
    seen = _judged(pair, losses.bent(pair, alpha))
    return terms, pair_metrics(seen, beta, margin=beta * gamma_beta_ratio)


def orpo(
    outputs: Outputs,
    batch: Batch,
    *,
    beta: float = 0.1,
    cpo_alpha: float = 1.0,
    nll_prompt: bool = False,
) -> tuple[Terms, dict[str, Mean]]:
    """ORPO (2403.07691, equation 6): NLL(chosen) - β · ls(log odds_c - log odds_r).

    Args:
      outputs: `logps`.
      batch: `mask`, `weights`, with `nll_prompt` also `valid`; two sequences each, chosen first.
      beta: λ in the paper.
      cpo_alpha: weight of the chosen answers' likelihood, 1 in the paper.
      nll_prompt: whether the likelihood is that of the prompt too, as TRL's is.
    """
    said = outputs._replace(logps=outputs.logps * batch["mask"])
    pair = _pair(said, batch)
    values = losses.orpo(pair, beta=beta)
    read = {**batch, "mask": behind_first(batch["valid"])} if nll_prompt else batch
    terms = _terms(values, pair, outputs, read, cpo_alpha)
    return terms, pair_metrics(_judged(pair, losses.log_odds(pair)), 1.0)


def _judged(pair: Pair, sides: tuple[Array, Array]) -> Pair:
    """The pair with what its loss compares in the place of log-ratios."""
    return pair._replace(a=sides[0], b=sides[1])


def _orpo_forward(*, nll_prompt: bool = False) -> dict[str, bool]:
    """The prompt's log-probs are computed where they are read."""
    return {"everywhere": nll_prompt}


def _pair(outputs: Outputs, batch: Batch) -> Pair:
    return Pair.of(outputs.logps, None, batch["mask"], batch["weights"])


def _terms(values: Array, pair: Pair, outputs: Outputs, batch: Batch, cpo_alpha: float) -> Terms:
    terms: Terms = {"preference": (1.0, Mean.of(values, pair.weights))}
    if cpo_alpha:
        terms["sft"] = (cpo_alpha, chosen_nll(outputs, batch))
    return terms


def _needs(
    *, beta: float, label_smoothing: float = 0.0, alpha: float = 1.0, cpo_alpha: float
) -> tuple[str, ...]:
    if not beta > 0:
        raise UserError(f"hparams.beta = {beta}: it must be positive")
    if not 0 <= label_smoothing < 0.5:
        raise UserError(f"hparams.label_smoothing = {label_smoothing}: it must be in [0, 0.5)")
    if alpha == 0:
        raise UserError("hparams.alpha = 0: use the method simpo, which is its limit")
    if cpo_alpha < 0:
        raise UserError(f"hparams.cpo_alpha = {cpo_alpha}: it cannot be negative")
    return ("logps",)


CPO = Algorithm(cpo, needs=_needs, data="pairs")
SIMPO = Algorithm(simpo, needs=_needs, data="pairs")
ALPHAPO = Algorithm(alphapo, needs=_needs, data="pairs")
ORPO = Algorithm(orpo, needs=_needs, data="pairs", forward=_orpo_forward)
