"""Presets as they are bound, their advantages and PPO's value loss: veRL's own numbers.

veRL adds 1e-8 to a number of tokens that it divides by, we do not: hence the tolerances.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.algorithms import METHODS
from ptjax.algorithms.online import PRESETS, online
from ptjax.algorithms.policy_gradient import policy_gradient
from ptjax.losses.kl import KLS
from ptjax.losses.returns import gae, token_rewards, whiten
from ptjax.losses.value import value_clipped, value_loss
from ptjax.types import Outputs
from tests.algorithms.test_policy_gradient import OWN_LOSS, columns
from tests.golden import weights
from tests.losses.checks import QUICK
from tests.stages import test_advantage as staged

GIVEN, VERL = weights.load("policy_gradient"), weights.load("verl")
MASK = GIVEN["mask"]
REWARDS = np.nansum(GIVEN["rewards"] * GIVEN["reward_weights"], -1)
CLOSE = 3e-8
BOUND = {
    **{name: name for name in ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "gmpo", "sapo", "gpg")},
    "gspo_token": "gspo",
    "reinforce_pp": "tokens",  # its KL is in the reward
    "reinforce_pp_baseline": "reinforce_pp_baseline",
    **dict.fromkeys(("reinforce", "remax", "opo"), "reinforce"),
}
"""Presets, and the case of veRL's that their loss is."""
WIDER = {
    "dual_clip": {"denominator": "tokens", "dual_clip": 1.3},
    "gspo_wide": {"ratio": "sequence", "clip_low": 0.03, "clip_high": 0.05},
    "cispo_tight": {"surrogate": "cispo", "denominator": "tokens"},
    "gmpo_tight": {"surrogate": "gmpo", "clip_low": 0.1, "clip_high": 0.15},
    "kl_k1": {"denominator": "tokens", "beta": 0.3, "kl": "k1"},
    "kl_k3": {"beta": 0.3, "kl": "k3"},
}
ADVANTAGES = {
    "grpo": {"eps": 1e-6},
    "dr_grpo": {"scale": "none"},
    "rloo": {"baseline": "leave_one_out", "scale": "none"},
    "opo": {"baseline": "length_weighted", "scale": "none"},
    "remax": {"baseline": "greedy", "scale": "none"},
    "reinforce_pp_baseline": {"scale": "none", "whitened": True},
    "reinforce_pp": {"baseline": "none", "scale": "none", "whitened": True}
    | {"beta": 0.1, "kl": "k1", "kl_in": "token_reward", "gamma": 0.9},
}


@pytest.fixture(scope="module")
def losses():
    """Of presets and of other settings: values and gradients."""
    hparams = {"dr_grpo": {"max_tokens": 9}}
    bound = {name: METHODS[name].bind(hparams.get(name, {}), "hparams").terms for name in BOUND}

    def each(logps):
        outputs, batch = Outputs(logps=logps, entropy=-logps), columns(jnp.float64)
        plain = {name: column for name, column in batch.items() if name != "ref_logps"}
        made = {
            name: run(outputs, batch if "baseline" in name else plain)[0]
            for name, run in bound.items()
        }
        for name, given in WIDER.items():
            made[name] = policy_gradient(outputs, batch if "beta" in given else plain, **given)[0]
        return {
            name: sum(coefficient * mean.value() for coefficient, mean in terms.values())
            for name, terms in made.items()
        }

    with jax.enable_x64(True):
        run = jax.jit(lambda x: (each(x), jax.jacrev(each)(x)), compiler_options=QUICK)
        return jax.device_get(run(jnp.asarray(GIVEN["logps"], jnp.float64)))


@pytest.mark.parametrize(("name", "case"), [*BOUND.items(), *zip(WIDER, WIDER, strict=True)])
def test_losses_and_gradients(losses, name, case):
    values, gradients = losses
    assert float(values[name]) == pytest.approx(VERL["losses"][case], rel=CLOSE)
    wanted = VERL[f"grad_{case}"]
    np.testing.assert_allclose(gradients[name], wanted, atol=CLOSE * np.abs(wanted).max())


def test_every_preset_has_the_loss_of_one_of_both():
    """And each its advantage: `tests/stages/test_advantage.py`."""
    assert {*BOUND, *OWN_LOSS} == {*PRESETS} == {*online(staged.ROLLOUT)}


@pytest.mark.parametrize("case", ADVANTAGES)
def test_advantages(case):
    """A group of equal rewards has none here; veRL's whitening moves it by the mean of all."""
    counts = MASK * 1.0
    if case == "reinforce_pp_baseline":
        counts *= (np.ptp(REWARDS, axis=1) > 0)[:, None, None]
    with jax.enable_x64(True):
        found = staged.run(staged.columns(np.float64), **ADVANTAGES[case])["advantages"]
    wanted = VERL[f"advantage_{case}"] * counts
    np.testing.assert_allclose(np.asarray(found) * MASK, wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("how", KLS)
def test_kl(how):
    with jax.enable_x64(True):
        found = KLS[how](jnp.asarray(GIVEN["logps"]), jnp.asarray(GIVEN["ref_logps"]))
    np.testing.assert_allclose(found, VERL[f"kl_{how}"], rtol=1e-12, atol=1e-15)


def test_generalised_advantages_and_the_value_loss():
    """Whitened as veRL always does; the loss clipped around the values of before."""

    def run(moved, critic, mask):
        given = token_rewards(jnp.asarray(REWARDS), mask)
        advantages, returns = gae(given, critic, mask, gamma=0.9, lam=0.8)

        def mean(moved, of=value_loss):
            each = of(moved, critic, returns, value_clip=0.2)
            return jnp.sum(each * mask) / jnp.sum(mask)

        value = jax.value_and_grad(mean)(moved)
        return whiten(advantages, mask), returns, value, mean(moved, value_clipped)

    with jax.enable_x64(True):
        given = (jnp.asarray(VERL["moved"]), jnp.asarray(GIVEN["critic"]), jnp.asarray(MASK))
        white, returns, (value, gradient), clipped = jax.jit(run, compiler_options=QUICK)(*given)
    np.testing.assert_allclose(white, VERL["white"], rtol=2 * CLOSE)
    np.testing.assert_allclose(returns, VERL["returns"], atol=1e-14)
    np.testing.assert_allclose(gradient, VERL["grad_value"], rtol=1e-12, atol=1e-15)
    assert float(value) == pytest.approx(VERL["losses"]["value"], rel=1e-12)
    assert float(clipped) == pytest.approx(VERL["losses"]["value_clipped"], rel=1e-6)
