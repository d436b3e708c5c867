"""Which settings of the policy gradient go together: what nothing would read is refused."""

from collections.abc import Mapping
from typing import Any

from ptjax.algorithms.hparams import keywords
from ptjax.algorithms.policy_gradient import DENOMINATORS, policy_gradient
from ptjax.errors import UserError, check_values, did_you_mean
from ptjax.losses.kl import KLS
from ptjax.losses.policy_gradient import SURROGATES
from ptjax.losses.ratios import CORRECTIONS, RATIOS
from ptjax.stages.advantage import SEVERAL
from ptjax.stages.reference import synced_reference
from ptjax.stages.token_advantages import BASELINES, IN_GROUPS, KL_IN, SCALES

_CHOICES = {
    "surrogate": SURROGATES,
    "ratio": RATIOS,
    "denominator": DENOMINATORS,
    "kl": KLS,
    "kl_in": KL_IN,
    "correction": CORRECTIONS,
    "baseline": BASELINES,
    "scale": SCALES,
    "several": SEVERAL,
}
_READ_BY = {
    "ratio": ("clipped", "cispo", "sapo"),
    "clip_low": ("clipped", "cispo", "gmpo"),
    "clip_high": ("clipped", "cispo", "gmpo"),
    "dual_clip": ("clipped",),
    "ratio_cap": ("clipped",),
    "taus": ("sapo",),
    "phi_positive": ("vespo",),
    "phi_negative": ("vespo",),
}
"""The surrogates that read a setting; those that are not here are read by the loss itself."""


def needs(**values: Any) -> tuple[str, ...]:
    """The outputs that the loss reads; refuses what `check` does."""
    check(values)
    return ("logps", "entropy")


def check(values: Mapping[str, Any]) -> None:
    """Refuses settings that do not go together.

    Args:
      values: all hyperparameters of `policy_gradient` and of the stage `advantage`.

    Raises:
      UserError: names the setting that has no meaning, or that nothing reads.
    """
    for name, known in _CHOICES.items():
        if values[name] not in known:
            raise UserError(f"hparams.{name} = {values[name]!r}{did_you_mean(values[name], known)}")
    _unread(values)
    check_correction(values)
    if "sync_every" in values:
        _check_following(values)
    _ranges(values)


def check_correction(values: Mapping[str, Any]) -> None:
    """Refuses bounds of importance weights where there are none, and bounds that cannot be.

    Args:
      values: `correction`, `correction_low` and `correction_high` among them.

    Raises:
      UserError: names the setting.
    """
    low, high = values["correction_low"], values["correction_high"]
    wrong = {"correction_high": ("above correction_low", not high > low)}
    check_values(values, wrong, "hparams.")
    usual = keywords(policy_gradient)
    for name in ("correction_low", "correction_high"):
        if values["correction"] == "none" and values[name] != usual[name]:
            raise UserError(f"hparams.{name} is not read where correction = 'none'")


def _check_following(values: Mapping[str, Any]) -> None:
    """Of a reference that follows the policy."""
    every, alpha = values["sync_every"], values["sync_alpha"]
    wrong = {
        "sync_every": ("not negative", every < 0),
        "sync_alpha": ("in (0, 1]", not 0 < alpha <= 1),
    }
    check_values(values, wrong, "hparams.")
    if every and not values["beta"]:
        raise UserError("hparams.sync_every is not read where beta = 0: there is no reference")
    if not every and alpha != keywords(synced_reference.run)["sync_alpha"]:
        raise UserError("hparams.sync_alpha is not read where sync_every = 0")


def _unread(values: Mapping[str, Any]) -> None:
    defaults = keywords(policy_gradient)
    for name, readers in _READ_BY.items():
        if values[name] != defaults[name] and values["surrogate"] not in readers:
            raise UserError(
                f"hparams.{name} goes with surrogate {' or '.join(readers)}, "
                f"not with {values['surrogate']!r}"
            )
    several = values["several"] == "normalize_then_sum"
    wrong = {
        "kl_in": (values["kl_in"] != "loss" and not values["beta"] and "it sets where beta goes")
        or (
            several
            and values["kl_in"] == "reward"
            and "several = 'normalize_then_sum' leaves no sum that KL could be taken from; 'loss' "
            "and 'token_reward' go with it"
        ),
        "kl_ratio": values["kl_ratio"]
        and not (values["beta"] and values["kl_in"] == "loss")
        and "it goes with beta > 0 and kl_in = 'loss'",
        "kl_target": values["kl_target"] is not None
        and not values["beta"]
        and "it moves beta, which is to begin above 0",
        "correction": values["correction"] != "none"
        and values["surrogate"] == "vespo"
        and "vespo weighs whole sequences itself",
        "several": several
        and (values["baseline"], values["scale"]) != ("group", "batch")
        and "normalize_then_sum goes with baseline = 'group' and scale = 'batch'",
        "scale": values["scale"] == "group"
        and values["baseline"] not in IN_GROUPS
        and "a group of one reward has no deviation to divide by; it goes with baseline = "
        + " or ".join(map(repr, IN_GROUPS)),
        "top_entropy": values["top_entropy"] < 1
        and values["surrogate"] == "gmpo"
        and "gmpo is of whole sequences",
    }
    for name, reason in wrong.items():
        if reason:
            raise UserError(f"hparams.{name} = {values[name]!r}: {reason}")


def _ranges(values: Mapping[str, Any]) -> None:
    cap, dual = values["ratio_cap"], values["dual_clip"]
    target = values["kl_target"]
    pairs = ("taus", "phi_positive", "phi_negative")
    wrong = {
        "max_tokens": ("not negative", values["max_tokens"] < 0),
        "clip_low": ("not negative", not values["clip_low"] >= 0),
        "clip_high": ("not negative", not values["clip_high"] >= 0),
        "dual_clip": ("above 1", dual is not None and not dual > 1),
        "ratio_cap": (
            "above 1 + clip_high",
            cap is not None and not cap > 1 + values["clip_high"],
        ),
        "beta": ("not negative", not values["beta"] >= 0),
        "eps": ("not negative", not values["eps"] >= 0),
        "gamma": ("in [0, 1]", not 0 <= values["gamma"] <= 1),
        "top_entropy": ("in (0, 1]", not 0 < values["top_entropy"] <= 1),
        "entropy_coef": ("not negative", not values["entropy_coef"] >= 0),
        "kl_target": ("above 0", target is not None and not target > 0),
        "kl_horizon": ("at least 1", values["kl_horizon"] < 1),
        **{name: ("two positive numbers", not _two_positive(values[name])) for name in pairs},
    }
    check_values(values, wrong, "hparams.")


def _two_positive(values: tuple[float, ...]) -> bool:
    return len(values) == 2 and all(value > 0 for value in values)
