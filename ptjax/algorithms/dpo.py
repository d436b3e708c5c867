"""Direct preference optimisation and its relatives: pairs against a reference."""

from collections.abc import Mapping
from typing import Any

from ptjax.algorithms.base import Algorithm, Terms, known_call
from ptjax.algorithms.hparams import keywords
from ptjax.algorithms.pairs import a_token, chosen_nll, drift_metrics, pair_metrics
from ptjax.errors import UserError, check_values, did_you_mean
from ptjax.losses.pair import F_DIVERGENCES, Pair, with_f_divergence, wpo_weight
from ptjax.losses.preference import COUPLED, F_DIVERGENCE_LOSSES, PAIR_LOSSES, options
from ptjax.stages.reference import iterated_reference, ref_logps, synced_reference
from ptjax.types import Batch, Mean, Outputs

SFT_TERM = "sft"
LOSSES = (*PAIR_LOSSES, SFT_TERM)


def dpo(
    outputs: Outputs,
    batch: Batch,
    *,
    loss: str | tuple[str, ...] = "sigmoid",
    loss_weights: tuple[float, ...] | None = None,
    beta: float = 0.1,
    label_smoothing: float | None = None,
    length_normalized: bool = True,
    tau: float = 0.05,
    f_divergence: str = "reverse_kl",
    f_alpha: float = 0.5,
    ld_alpha: float = 1.0,
    wpo: bool = False,
) -> tuple[Terms, dict[str, Mean]]:
    """L = Σ_k c_k L_k, each the mean of a loss of `ptjax.losses.preference` over pairs.

    DPO (2305.18290, equation 7) is `sigmoid` alone; MPO (2411.10442) is `("sigmoid", "bco_pair",
    "sft")` with weights (0.8, 0.2, 1.0). `sft` is the likelihood of the chosen answers, a mean
    over their tokens.

    Args:
      outputs: `logps`; `sum_squares` with wpo.
      batch: `mask`, `weights`, `ref_logps`, two sequences each, chosen first.
      loss: a name or several.
      loss_weights: c_k, one a loss; None: 1 each.
      beta: β, in 1/nat.
      label_smoothing: e, the share of labels held to be wrong; None: each loss's own default.
      length_normalized: `ipo`: log-ratios per token; False: sums.
      tau: `discopop`: width of its passage.
      f_divergence: what holds the policy to the reference (2309.16240): `reverse_kl`,
        `forward_kl`, `js`, `alpha`.
      f_alpha: α of `alpha`.
      ld_alpha: weight of the longer side's tail (LD-DPO, 2409.06411); 1 changes nothing.
      wpo: weight pairs by how likely the policy is to write them (2406.11827); `sft` is not of a
        pair and keeps its own weight.

    Returns:
      The terms, and the metrics of docs/methods/dpo.md.
    """
    columns = (outputs.logps, batch["ref_logps"], batch["mask"], batch["weights"])
    pair = Pair.of(*columns, ld_alpha=ld_alpha)
    seen = pair
    if f_divergence != "reverse_kl":
        seen = with_f_divergence(pair, f_divergence=f_divergence, f_alpha=f_alpha)
    settings: dict[str, Any] = {"length_normalized": length_normalized, "tau": tau}
    if label_smoothing is not None:
        settings["label_smoothing"] = label_smoothing
    scale = 1.0
    if wpo:
        weight = wpo_weight(outputs.logps, outputs.sum_squares, batch["mask"])
        scale = weight[:, 0] * weight[:, 1]
    names = _names(loss)
    terms: Terms = {}
    for name, coefficient in zip(names, loss_weights or (1.0,) * len(names), strict=True):
        if name == SFT_TERM:
            terms[name] = (coefficient, chosen_nll(outputs, batch))
        else:
            values = known_call(PAIR_LOSSES[name], {**settings, "beta": beta}, seen)
            terms[name] = (coefficient, Mean.of(scale * values, pair.weights))
    whole = pair if ld_alpha == 1 else Pair.of(*columns)
    measured = a_token(seen) if _by_length(names, length_normalized) else seen
    measured = measured._replace(
        chosen_logps=whole.chosen_logps, rejected_logps=whole.rejected_logps
    )
    return terms, pair_metrics(measured, beta) | drift_metrics(outputs, batch, whole)


def _by_length(names: tuple[str, ...], length_normalized: bool) -> bool:
    """Whether every loss of log-ratios sees them per token."""
    normalized = ("sigmoid_norm", "ipo") if length_normalized else ("sigmoid_norm",)
    seen = [name for name in names if name != SFT_TERM]
    return bool(seen) and all(name in normalized for name in seen)


def _names(loss: str | tuple[str, ...]) -> tuple[str, ...]:
    return (loss,) if isinstance(loss, str) else loss


def _needs(**values: Any) -> tuple[str, ...]:
    _check(**values)
    return ("logps", "sum_squares") if values["wpo"] else ("logps",)


def _check(
    *,
    loss: str | tuple[str, ...],
    loss_weights: tuple[float, ...] | None,
    beta: float,
    label_smoothing: float | None,
    f_divergence: str,
    ld_alpha: float,
    **others: Any,
) -> None:
    """Refuses what no loss reads, and what would have no meaning."""
    names = _names(loss)
    for name in names:
        if name not in LOSSES:
            raise UserError(f"dpo: loss {name!r}{did_you_mean(str(name), LOSSES)}")
    if len(set(names)) < len(names) or not names:
        raise UserError(f"dpo: loss {loss!r} is to name different losses")
    if loss_weights is not None and len(loss_weights) != len(names):
        raise UserError(f"dpo: {len(loss_weights)} loss_weights for {len(names)} losses")
    if not beta > 0:
        raise UserError(f"dpo: beta = {beta}: it must be positive")
    if label_smoothing is not None:
        if not any("label_smoothing" in options(n) for n in names if n in PAIR_LOSSES):
            raise UserError(f"dpo: label_smoothing is not read by loss {loss!r}")
        least = "in (0, 0.5)" if "exo_pair" in names else "in [0, 0.5)"
        if not 0 <= label_smoothing < 0.5 or (label_smoothing == 0 and "exo_pair" in names):
            raise UserError(f"dpo: label_smoothing = {label_smoothing}: it must be {least}")
    if f_divergence not in F_DIVERGENCES:
        hint = did_you_mean(str(f_divergence), F_DIVERGENCES)
        raise UserError(f"dpo: f_divergence {f_divergence!r}{hint}")
    other = [n for n in names if n in PAIR_LOSSES and n not in F_DIVERGENCE_LOSSES]
    if f_divergence != "reverse_kl" and other:
        raise UserError(
            f"dpo: f_divergence {f_divergence!r} goes with {', '.join(F_DIVERGENCE_LOSSES)}, "
            f"not with {other[0]}"
        )
    if others["wpo"] and _coupled(loss=loss):
        raise UserError(
            f"dpo: wpo weighs the loss of one pair, and loss {loss!r} sorts those of the batch: "
            "set wpo = False, or take another loss"
        )
    _unread(loss, {"f_divergence": f_divergence, **others})
    given = {"ld_alpha": ld_alpha, **others}
    wrong = {
        "ld_alpha": ("in [0, 1]", not 0 <= ld_alpha <= 1),
        "tau": ("in (0, 1]", not 0 < given["tau"] <= 1),
        "sync_every": ("not negative", given["sync_every"] < 0),
        "sync_alpha": ("in (0, 1]", not 0 < given["sync_alpha"] <= 1),
    }
    check_values(given, wrong, "dpo: ")


def _unread(loss: str | tuple[str, ...], values: Mapping[str, Any]) -> None:
    """Refuses a setting, other than as it is by default, that none of the losses reads."""
    fixed = keywords(dpo)
    read = {name for one in _names(loss) if one in PAIR_LOSSES for name in options(one)}
    for name in ("tau", "length_normalized"):
        if values[name] != fixed[name] and name not in read:
            raise UserError(f"dpo: {name} is not read by loss {loss!r}")
    if values["f_alpha"] != fixed["f_alpha"] and values["f_divergence"] != "alpha":
        raise UserError("dpo: f_alpha is not read by f_divergence other than 'alpha'")
    usual = (keywords(stage.run)["sync_alpha"] for stage in (synced_reference, iterated_reference))
    if not values["sync_every"] and values["sync_alpha"] not in usual:
        raise UserError("dpo: sync_alpha is not read where sync_every = 0")


def _coupled(*, loss: str | tuple[str, ...]) -> bool:
    return any(name in COUPLED for name in _names(loss))


DPO = Algorithm(
    dpo,
    stages=(synced_reference, ref_logps),
    needs=_needs,
    data="pairs",
    coupled=_coupled,
)
"""Where `sync_every` is set the reference follows the policy, else it stays."""
