"""Makes policy_gradient.npz: losses of the policy gradient, their gradients, advantages, in torch.

    pip install torch transformers==5.23 trl==1.16.0
    python -m tests.golden.make_policy_gradient

Where each number comes from:

- TRL 1.16's own code: `GRPOTrainer._compute_loss` and `RLOOTrainer._compute_loss`, given
  log-probabilities and entropies in the place of a model; the part of
  `_generate_and_score_completions` that computes advantages, and the one that computes importance
  weights, cut out of the installed file and run.
- Formulas below, written from the papers: what TRL 1.16 has not (dual clip, CISPO with both sides,
  GMPO, GSPO-token, k1 and k2 in the loss, plain REINFORCE), the baselines of OPO, ReMax and GPG,
  REINFORCE++ and its baseline form, GAE, AWR and DRO. veRL's own numbers are in `make_verl`.

All is float64. The file (read with `tests.golden.weights.load("policy_gradient")`) holds

    logps, old_logps, ref_logps, sampler_logps, entropy, critic, mask
                 float64 [B, N, T]; entry t is about token t; the mask has a gap
    advantages   float64 [B, N]
    rewards      float64 [B, N, F], NaN where a reward abstained; reward_weights [F]; greedy [B]
    cases        {case: the hyperparameters of ptjax.algorithms.policy_gradient}
    values       {case: the loss}
    grad_CASE    float64 [B, N, T], its gradient with respect to logps
    advantage_cases   {case: the hyperparameters of the stage `advantage`}
    advantage_CASE    float64 [B, N] or [B, N, T]
    weights_HOW       float64 [B, N, T]: importance weights
    gae, returns      float64 [B, N, T]: γ .9, λ .8, the reward at the last token
    awr, dro, grad_awr, grad_dro
"""

import inspect
import json
import textwrap
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import torch
from trl import GRPOTrainer, RLOOTrainer
from trl.trainer import grpo_trainer, rloo_trainer

from tests.golden import weights

B, N, T = 3, 4, 11
FORMULA = "formula"

SEQUENCE = dict(ratio="sequence", clip_low=0.03, clip_high=0.05)
TRL_CASES = {
    "grpo": dict(),
    "grpo_higher": dict(clip_low=0.1, clip_high=0.28),
    "grpo_capped": dict(ratio_cap=1.25),
    "grpo_kl": dict(beta=0.3),
    "grpo_kl_ratio": dict(beta=0.3, kl_ratio=True),
    "grpo_entropy": dict(entropy_coef=0.2),
    "grpo_off_policy": dict(off_policy=0.05),
    "grpo_forking": dict(top_entropy=0.4),
    "dapo": dict(denominator="tokens", clip_high=0.28),
    "dapo_kl": dict(denominator="tokens", beta=0.1),
    "dr_grpo": dict(denominator="constant", max_tokens=9),
    "gspo": SEQUENCE,
    "cispo": dict(surrogate="cispo", denominator="tokens", clip_low=1.0, clip_high=0.3),
    "cispo_sequence": dict(surrogate="cispo", denominator="tokens", **SEQUENCE | {"clip_low": 1.0}),
    "sapo": dict(surrogate="sapo"),
    "sapo_steep": dict(surrogate="sapo", taus=(2.0, 3.0)),
    "luspo": dict(denominator="sequence_sum", **SEQUENCE),
    "luspo_tight": dict(
        ratio="sequence", denominator="sequence_sum", clip_low=3e-4, clip_high=4e-4
    ),
    "vespo": dict(surrogate="vespo", denominator="tokens"),
    "vespo_wide": dict(
        surrogate="vespo", denominator="tokens", phi_positive=(1.0, 1.0), phi_negative=(2.0, 1.0)
    ),
    "rloo": dict(ratio="sequence_sum"),
    "rloo_wide": dict(ratio="sequence_sum", clip_low=0.6, clip_high=0.9),
    **{
        f"correction_{how}": dict(correction=how, correction_low=0.7, correction_high=1.4)
        for how in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
    },
}
FORMULA_CASES = {
    "dual_clip": dict(denominator="tokens", dual_clip=1.3),
    "cispo_both": dict(surrogate="cispo", denominator="tokens", clip_low=0.2, clip_high=0.2),
    "gmpo": dict(surrogate="gmpo"),
    "gmpo_tight": dict(surrogate="gmpo", clip_low=0.1, clip_high=0.15),
    "gspo_token": dict(ratio="sequence_token", clip_low=0.03, clip_high=0.05),
    "reinforce": dict(surrogate="reinforce", denominator="sequence_sum"),
    "kl_k1": dict(beta=0.3, kl="k1", denominator="tokens"),
    "kl_k2": dict(beta=0.3, kl="k2", denominator="tokens"),
}
ADVANTAGES = {
    "group": dict(),
    "group_batch": dict(scale="batch"),
    "group_none": dict(scale="none"),
    "parts": dict(several="normalize_then_sum", scale="batch"),
    "rloo": dict(baseline="leave_one_out", scale="none"),
    "rloo_kl": dict(baseline="leave_one_out", scale="none", beta=0.05, kl="k1", kl_in="reward"),
    "opo": dict(baseline="length_weighted", scale="none"),
    "remax": dict(baseline="greedy", scale="none"),
    "gpg": dict(scale="signal"),
    "batch": dict(baseline="batch", scale="none"),
    "reinforce_pp": dict(
        baseline="none",
        scale="none",
        whitened=True,
        beta=0.1,
        kl="k1",
        kl_in="token_reward",
        gamma=0.9,
    ),
    "reinforce_pp_baseline": dict(scale="none", whitened=True),
}


def arrays() -> dict[str, np.ndarray]:
    """Everything that is given; answers of unlike lengths, one with a gap, one group all alike."""
    state = np.random.RandomState(11)
    shape = (B, N, T)
    starts = np.array([2, 1, 3])[:, None, None]
    lengths = np.array([(4, 7, 1, 5), (8, 2, 6, 3), (3, 8, 5, 2)])[..., None]
    place = np.arange(T)
    mask = ((place >= starts) & (place < starts + lengths)).astype(float)
    mask[1, 2, 4:6] = 0  # what a tool wrote
    logps = -np.abs(1.2 * state.standard_normal(shape)) - 0.05
    near = {name: logps + 0.3 * state.standard_normal(shape) for name in ("old", "sampler", "ref")}
    rewards = state.randint(0, 4, (B, N, 2)) * np.array([1.0, 0.3])
    rewards[1] = 0.1
    rewards[2, 1, 0] = np.nan
    return dict(
        logps=logps * mask,
        old_logps=near["old"] * mask,
        ref_logps=near["ref"] * mask,
        sampler_logps=near["sampler"] * mask,
        entropy=np.abs(state.standard_normal(shape)) * mask,
        critic=state.standard_normal(shape) * mask,
        mask=mask,
        advantages=state.standard_normal((B, N)),
        rewards=rewards,
        reward_weights=np.array([1.0, 0.5]),
        greedy=state.standard_normal(B),
    )


GIVEN = arrays()


def flat(name: str) -> torch.Tensor:
    """A given array, [B N, ...]."""
    given = GIVEN[name]
    return torch.tensor(given.reshape(B * N, *given.shape[2:]))


def part(module, cls, first: str, last: str, **names) -> dict:
    """Runs the lines of a trainer's scoring between two that hold these texts; what they set."""
    lines = inspect.getsource(cls._generate_and_score_completions).splitlines()
    begin = next(i for i, line in enumerate(lines) if first in line)
    end = next(i for i, line in enumerate(lines) if i > begin and last in line)
    scope = vars(module) | names
    exec(textwrap.dedent("\n".join(lines[begin:end])), scope)
    return scope


def importance(how: str) -> torch.Tensor:
    """GRPOTrainer's importance weights of the sampler, [B N, T] or [B N, 1]."""
    level, form = how.split("_")
    self = SimpleNamespace(
        use_vllm=True,
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode=f"{level}_{form}",
        vllm_importance_sampling_clip_min=0.7,
        vllm_importance_sampling_clip_max=1.4,
    )
    return part(
        grpo_trainer,
        GRPOTrainer,
        "if self.use_vllm and self.vllm_importance_sampling_correction",
        "# Compute the per-token log probabilities for the reference model",
        self=self,
        tool_mask=None,
        completion_mask=flat("mask"),
        old_per_token_logps=flat("old_logps"),
        sampling_per_token_logps=flat("sampler_logps"),
    )["vllm_importance_sampling_ratio"]


def trainer(logps: torch.Tensor, **fields) -> SimpleNamespace:
    """What `_compute_loss` reads of a trainer; the model says what is given."""
    accelerator = SimpleNamespace(
        num_processes=1,
        sync_gradients=True,
        gather=lambda x: x,
        reduce=lambda x, reduction: x,
        pad_across_processes=lambda x, dim, pad_index: x,
    )
    said = (logps, flat("entropy"), None)
    return SimpleNamespace(
        accelerator=accelerator,
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        current_gradient_accumulation_steps=1,
        _get_per_token_logps_and_entropies=lambda *_, **__: said,
        _metrics={"train": defaultdict(list)},
        **fields,
    )


def inputs(**more) -> dict:
    """A batch of completions without prompts."""
    mask = flat("mask")
    ids = torch.zeros(mask.shape, dtype=torch.long)
    return dict(
        prompt_ids=ids[:, :0],
        prompt_mask=ids[:, :0],
        completion_ids=ids,
        completion_mask=mask,
        advantages=torch.tensor(GIVEN["advantages"].reshape(-1)),
        **more,
    )


def trl_loss(logps: torch.Tensor, case: dict) -> torch.Tensor:
    """GRPOTrainer's loss, or for a sum of log-ratios RLOOTrainer's."""
    low, high = case.get("clip_low", 0.2), case.get("clip_high", 0.2)
    ratio, denominator = case.get("ratio", "token"), case.get("denominator", "sequence")
    if ratio == "sequence_sum":
        self = trainer(logps, epsilon_low=low, epsilon_high=high)
        old = (flat("old_logps") * flat("mask")).sum(1)
        return RLOOTrainer._compute_loss(self, None, inputs(old_logps=old))
    surrogate = case.get("surrogate", "clipped")
    named = {
        "sequence": "grpo",
        "tokens": "dapo",
        "constant": "dr_grpo",
        "sequence_sum": "luspo",
    }
    k_pos, lambda_pos = case.get("phi_positive", (2.0, 3.0))
    k_neg, lambda_neg = case.get("phi_negative", (3.0, 2.0))
    taus = case.get("taus", (1.0, 1.05))
    how = case.get("correction")
    self = trainer(
        logps,
        loss_type=named[denominator] if surrogate == "clipped" else surrogate,
        importance_sampling_level=ratio,
        epsilon_low=low,
        epsilon_high=1 + high if surrogate == "cispo" else high,
        beta=case.get("beta", 0.0),
        top_entropy_quantile=case.get("top_entropy", 1.0),
        off_policy_mask_threshold=case.get("off_policy"),
        max_completion_length=case.get("max_tokens"),
        use_vllm=how is not None,
        vllm_importance_sampling_correction=True,
        _entropy_bonus_enabled=bool(case.get("entropy_coef")),
        use_adaptive_entropy=False,
        entropy_coef=case.get("entropy_coef", 0.0),
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        get_gamma_weights=GRPOTrainer.get_gamma_weights,
        args=SimpleNamespace(
            delta=case.get("ratio_cap"),
            use_bias_correction_kl=case.get("kl_ratio", False),
            sapo_temperature_pos=taus[0],
            sapo_temperature_neg=taus[1],
            vespo_k_pos=k_pos,
            vespo_k_neg=k_neg,
            vespo_lambda_pos=lambda_pos,
            vespo_lambda_neg=lambda_neg,
            steps_per_generation=1,
        ),
    )
    self.get_high_entropy_mask = GRPOTrainer.get_high_entropy_mask.__get__(self)
    more = dict(
        old_per_token_logps=flat("old_logps"),
        ref_per_token_logps=flat("ref_logps"),
        num_items_in_batch=flat("mask").sum(),
    )
    if "off_policy" in case:
        more["sampling_per_token_logps"] = flat("sampler_logps")
    if how:
        more["importance_sampling_ratio"] = importance(how)
    return GRPOTrainer._compute_loss(self, None, inputs(**more))


def formula_loss(logps: torch.Tensor, case: dict) -> torch.Tensor:
    """What TRL does not have, from the papers."""
    low, high = case.get("clip_low", 0.2), case.get("clip_high", 0.2)
    mask, old, ref = flat("mask"), flat("old_logps"), flat("ref_logps")
    a = torch.tensor(GIVEN["advantages"].reshape(-1, 1))
    length = mask.sum(-1, keepdim=True)
    u = (logps - old) * mask
    r = u.exp()
    if case.get("surrogate") == "gmpo":
        v = torch.where(a > 0, u.clamp(max=high), u.clamp(min=-low)) * mask
        return -((v.sum(-1, keepdim=True) / length).exp() * a).mean()
    if case.get("surrogate") == "reinforce":
        return -(a * logps * mask).sum(-1).mean()
    if case.get("surrogate") == "cispo":
        values = -(r.clamp(1 - low, 1 + high).detach() * a * logps)
        return (values * mask).sum() / mask.sum()
    if case.get("ratio") == "sequence_token":
        r = (u.sum(-1, keepdim=True) / length).exp().detach() * (logps - logps.detach()).exp()
    values = torch.maximum(-r * a, -r.clamp(1 - low, 1 + high) * a)
    if case.get("ratio") == "sequence_token":
        return ((values * mask).sum(-1, keepdim=True) / length).mean()
    if "dual_clip" in case:
        values = torch.where(a < 0, torch.minimum(values, -case["dual_clip"] * a), values)
    if "beta" in case:
        gap = logps - ref
        values = values + case["beta"] * (gap if case["kl"] == "k1" else gap**2 / 2)
    return (values * mask).sum() / mask.sum()


def trl_advantages(case: dict) -> np.ndarray:
    """The trainers' own lines; `_calculate_rewards` has been."""
    common = dict(
        rewards_per_func=flat("rewards"),
        device="cpu",
        num_generations=N,
        completion_mask=flat("mask"),
        old_per_token_logps=flat("old_logps"),
        ref_per_token_logps=flat("ref_logps"),
        gather=lambda x: x,
    )
    fields = dict(reward_weights=torch.tensor(GIVEN["reward_weights"]))
    if case.get("baseline") == "leave_one_out":
        self = SimpleNamespace(
            **fields,
            reward_clip_range=None,
            beta=case.get("beta", 0.0),
            normalize_advantages=False,
        )
        trainer, cls, last = rloo_trainer, RLOOTrainer, "is_std_zero = torch"
    else:
        self = SimpleNamespace(
            **fields,
            scale_rewards=case.get("scale", "group"),
            multi_objective_aggregation=case.get("several", "sum_then_normalize"),
            reward_funcs=[None, None],
        )
        trainer, cls, last = grpo_trainer, GRPOTrainer, "# Slice to keep only the local part"
    found = part(trainer, cls, "unscorable_mask = torch.isnan", last, self=self, **common)
    return found["advantages"].reshape(B, N).numpy()


def formula_advantages(case: dict) -> np.ndarray:
    """From the papers; [B, N], and for returns [B, N, T]."""
    rewards = np.nansum(GIVEN["rewards"] * GIVEN["reward_weights"], -1)
    mask = GIVEN["mask"]
    baseline, mean = case.get("baseline"), rewards.mean(1, keepdims=True)
    if baseline == "length_weighted":
        n = mask.sum(-1)
        return rewards - (n * rewards).sum(1, keepdims=True) / n.sum(1, keepdims=True)
    if baseline == "greedy":
        return rewards - GIVEN["greedy"][:, None]
    if baseline == "batch":
        return rewards - rewards.mean()
    if case.get("scale") == "signal":
        return (rewards - mean) * B / np.count_nonzero(np.ptp(rewards, axis=1) > 0)
    if baseline == "none":
        returns = np.zeros_like(mask)
        kl = GIVEN["old_logps"] - GIVEN["ref_logps"]
        for b in range(B):
            for n in range(N):
                later, places = 0.0, np.flatnonzero(mask[b, n])
                for t in reversed(places):
                    end = rewards[b, n] if t == places[-1] else 0.0
                    later = end - case["beta"] * kl[b, n, t] + case["gamma"] * later
                    returns[b, n, t] = later
    else:
        returns = (rewards - mean)[..., None] * mask
    inside = returns[mask > 0]
    white = (returns - inside.mean()) / np.sqrt(inside.var(ddof=1) + 1e-8) * mask
    if baseline == "none":
        return white
    return white * (np.ptp(rewards, axis=1) > 0)[:, None, None]


def gae() -> tuple[np.ndarray, np.ndarray]:
    """Generalised advantages, token by token, tool output stepped over."""
    gamma, lam = 0.9, 0.8
    rewards = np.nansum(GIVEN["rewards"] * GIVEN["reward_weights"], -1)
    mask, values = GIVEN["mask"], GIVEN["critic"]
    found = np.zeros_like(values)
    for b in range(B):
        for n in range(N):
            places = np.flatnonzero(mask[b, n])
            steps = np.append(values[b, n, places], 0)
            deltas = gamma * steps[1:] - steps[:-1]
            deltas[-1] += rewards[b, n]
            for i, t in enumerate(places):
                powers = (gamma * lam) ** np.arange(len(places) - i)
                found[b, n, t] = (powers * deltas[i:]).sum()
    return found, (found + values) * mask


def offline(logps: torch.Tensor, name: str) -> torch.Tensor:
    """AWR at β .7, capped at 2; DRO at τ .4, V .3."""
    mask, a = flat("mask"), torch.tensor(GIVEN["advantages"].reshape(-1, 1))
    if name == "awr":
        weight = (a / 0.7).exp().clamp(max=2.0)
        return -(weight * logps * mask).sum() / mask.sum()
    ratio = ((logps - flat("ref_logps")) * mask).sum(-1)
    return (0.5 * (a[:, 0] - 0.3 - 0.4 * ratio) ** 2).mean()


def main() -> None:
    """Writes policy_gradient.npz."""
    losses, found = {}, {}
    functions = [(TRL_CASES, trl_loss), (FORMULA_CASES, formula_loss)]
    functions.append(({name: name for name in ("awr", "dro")}, offline))
    for cases, loss in functions:
        for name, case in cases.items():
            leaf = flat("logps").requires_grad_()
            value = loss(leaf, case)
            value.backward()
            losses[name] = value.item()
            found[f"grad_{name}"] = leaf.grad.reshape(B, N, T).numpy()
    for name, case in ADVANTAGES.items():
        trl = name.startswith(("group", "parts", "rloo"))
        found[f"advantage_{name}"] = (trl_advantages if trl else formula_advantages)(case)
    for case in TRL_CASES.values():
        if how := case.get("correction"):
            spread = importance(how) * torch.ones_like(flat("mask"))
            found[f"weights_{how}"] = (spread * flat("mask")).reshape(B, N, T).numpy()
    found["gae"], found["returns"] = gae()
    np.savez_compressed(
        weights.FOLDER / "policy_gradient.npz",
        **GIVEN,
        cases_json=json.dumps({**TRL_CASES, **FORMULA_CASES}),
        advantage_cases_json=json.dumps(ADVANTAGES),
        values_json=json.dumps(losses),
        **found,
    )
    print(json.dumps(losses, indent=1))
    print({name: x.round(4).tolist() for name, x in found.items() if x.ndim == 2})


if __name__ == "__main__":
    main()
