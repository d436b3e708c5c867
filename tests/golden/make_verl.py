"""Makes verl.npz: veRL's own losses, gradients, advantages and value loss, on the arrays of TRL's.

    pip install torch transformers==5.23 trl==1.16.0 omegaconf tensordict ray codetiming orjson
    pip install --no-deps verl==0.9.1
    python -m tests.golden.make_verl

All is `verl.trainer.ppo.core_algos`, called as its trainer does, in float64, on the arrays of
`make_policy_gradient`; nothing is written from a paper here. What its tables do not have is not
here: LUSPO, VESPO. The file (read with `tests.golden.weights.load("verl")`) holds

    losses       {case: the loss}, and of the value loss its `value` and `value_clipped`
    grad_CASE    float64 [B, N, T], the loss's gradient with respect to logps
    advantage_CASE    float64 [B, N, T]
    kl_HOW       float64 [B, N, T]: each token's estimate
    returns      float64 [B, N, T] of GAE (γ .9, λ .8); white, its advantages, whitened
    moved        float64 [B, N, T]: values that have left `critic`, for the value loss clipped at .2
    grad_value   float64 [B, N, T], its gradient with respect to them
"""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from verl.trainer.ppo import core_algos as verl
from verl.workers.config import ActorConfig

from tests.golden import weights
from tests.golden.make_policy_gradient import GIVEN, B, N, T, flat

MASK = flat("mask")
ADVANTAGES = torch.tensor(GIVEN["advantages"].reshape(-1, 1)) * MASK
REWARDS = np.nansum(GIVEN["rewards"] * GIVEN["reward_weights"], -1)
GROUPS = np.repeat(np.arange(B), N)

TOKENS, ANSWERS, SUMS = "token-mean", "seq-mean-token-mean", "seq-mean-token-sum"
LOSSES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "grpo": ("vanilla", ANSWERS, {}),
    "dr_grpo": (
        *("vanilla", "seq-mean-token-sum-norm"),
        {"global_batch_info": {"loss_scale_factor": 9}},
    ),
    "dapo": ("vanilla", TOKENS, {"clip_ratio_high": 0.28}),
    "dual_clip": ("vanilla", TOKENS, {"clip_ratio_c": 1.3}),
    "gspo": ("gspo", ANSWERS, {"clip_ratio_low": 3e-4, "clip_ratio_high": 4e-4}),
    "gspo_wide": ("gspo", ANSWERS, {"clip_ratio_low": 0.03, "clip_ratio_high": 0.05}),
    "cispo": ("cispo", TOKENS, {"clip_ratio_low": 1.0, "clip_ratio_high": 4.0}),
    "cispo_tight": ("cispo", TOKENS, {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2}),
    "gmpo": ("geo_mean", ANSWERS, {"clip_ratio_low": 0.4, "clip_ratio_high": 0.4}),
    "gmpo_tight": ("geo_mean", ANSWERS, {"clip_ratio_low": 0.1, "clip_ratio_high": 0.15}),
    "sapo": ("sapo", ANSWERS, {"tau_pos": 1.0, "tau_neg": 1.05}),
    "gpg": ("gpg", TOKENS, {}),
    "reinforce": ("gpg", SUMS, {}),
    "tokens": ("vanilla", TOKENS, {}),
    "reinforce_pp_baseline": ("vanilla", TOKENS, {"kl_loss_type": "k2", "kl_loss_coef": 1e-3}),
    "kl_k1": ("vanilla", TOKENS, {"kl_loss_type": "k1", "kl_loss_coef": 0.3}),
    "kl_k3": ("vanilla", ANSWERS, {"kl_loss_type": "k3", "kl_loss_coef": 0.3}),
}
"""A loss of veRL's registry, its mode of adding up, and what differs from the actor's defaults."""

NEVER = 1e9
"""A dual clip that nothing reaches: what a case has that does not ask for one."""


def loss(logps: torch.Tensor, name: str) -> torch.Tensor:
    """What an actor's update minimises."""
    policy, mode, settings = LOSSES[name]
    settings = {"clip_ratio_c": NEVER, **settings}
    config = ActorConfig(strategy="fsdp", rollout_n=N, ppo_micro_batch_size_per_gpu=1, **settings)
    total, _ = verl.get_policy_loss_fn(policy)(
        old_log_prob=flat("old_logps"),
        log_prob=logps,
        advantages=ADVANTAGES,
        response_mask=MASK,
        loss_agg_mode=mode,
        config=config,
    )
    if "kl_loss_type" in settings:
        each = verl.kl_penalty(logps, flat("ref_logps"), settings["kl_loss_type"])
        total = total + settings["kl_loss_coef"] * verl.agg_loss(each, MASK, mode)
    return total


def at_the_end() -> torch.Tensor:
    """Rewards of answers at their last tokens, [B N, T]."""
    ends = (MASK.cumsum(-1) == MASK.sum(-1, keepdim=True)) & (MASK > 0)
    return torch.tensor(REWARDS.reshape(-1, 1)) * ends


def advantages() -> dict[str, torch.Tensor]:
    """Every estimator that has the same definition here."""
    grouped = dict(response_mask=MASK, index=GROUPS)
    scores = at_the_end()
    penalised = verl.compute_rewards(scores, flat("old_logps"), flat("ref_logps"), 0.1)
    found = {
        "grpo": verl.compute_grpo_outcome_advantage(scores.clone(), **grouped),
        "dr_grpo": verl.compute_grpo_outcome_advantage(
            scores.clone(), **grouped, norm_adv_by_std_in_grpo=False
        ),
        "rloo": verl.compute_rloo_outcome_advantage(scores.clone(), **grouped),
        "opo": verl.compute_opo_outcome_advantage(scores.clone(), **grouped),
        "reinforce_pp_baseline": verl.compute_reinforce_plus_plus_baseline_outcome_advantage(
            scores.clone(), **grouped
        ),
        "reinforce_pp": verl.compute_reinforce_plus_plus_outcome_advantage(
            penalised, MASK, config=SimpleNamespace(gamma=0.9)
        ),
        "remax": verl.compute_remax_outcome_advantage(
            scores, torch.tensor(GIVEN["greedy"]).repeat_interleave(N), MASK
        ),
    }
    return {name: advantage * MASK for name, (advantage, _) in found.items()}


def main() -> None:
    """Writes verl.npz."""
    losses, found = {}, {}
    for name in LOSSES:
        leaf = flat("logps").requires_grad_()
        value = loss(leaf, name)
        value.backward()
        losses[name], found[f"grad_{name}"] = value.item(), leaf.grad
    found |= {f"advantage_{name}": value for name, value in advantages().items()}
    for how in ("k1", "k2", "k3"):
        found[f"kl_{how}"] = verl.kl_penalty(flat("logps"), flat("ref_logps"), how)
    critic = flat("critic")
    white, returns = verl.compute_gae_advantage_return(at_the_end(), critic, MASK, 0.9, 0.8)
    found |= {"white": white * MASK, "returns": returns * MASK}
    away = np.random.RandomState(3).standard_normal((B * N, T)) * 0.4
    moved = (critic + torch.tensor(away) * MASK).requires_grad_()
    value, clipped = verl.compute_value_loss(moved, returns, critic, MASK, 0.2)
    value.backward()
    found |= {"moved": moved.detach(), "grad_value": moved.grad}
    losses |= {"value": value.item(), "value_clipped": clipped.item()}
    np.savez_compressed(
        weights.FOLDER / "verl.npz",
        losses_json=json.dumps(losses),
        **{name: x.reshape(B, N, T).numpy() for name, x in found.items()},
    )
    print(json.dumps(losses, indent=1))


if __name__ == "__main__":
    main()
