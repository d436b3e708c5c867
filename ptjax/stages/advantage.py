"""From rewards to advantages of tokens, with all that looks at the whole batch."""

from ptjax.stages.base import Context, Stage, without_truncated
from ptjax.stages.token_advantages import IN_GROUPS, token_advantages
from ptjax.types import Batch

SEVERAL = ("sum_then_normalize", "normalize_then_sum")
_READ = (
    "rewards",
    "reward_parts",
    "greedy_rewards",
    "weights",
    "mask",
    "sampler_logps",
    "old_logps",
    "old_entropy",
    "ref_logps",
    "kl_coef",
)


def _advantage(
    ctx: Context,
    batch: Batch,
    carry: None,
    *,
    baseline: str = "group",
    scale: str = "group",
    eps: float = 1e-4,
    several: str = "sum_then_normalize",
    whitened: bool = False,
    gamma: float = 1.0,
    beta: float = 0.0,
    kl: str = "k3",
    kl_in: str = "loss",
    top_entropy: float = 1.0,
    mask_truncated: bool = False,
) -> tuple[Batch, None]:
    """Adds `advantages`; where truncated answers are masked, their `weights` become 0 afterwards.

    A = (R - baseline) / scale, R less β Σ_t kl_t where `kl_in` is `reward`; as a return
    G_t = Σ_{s >= t} γ^(s-t) r_s of r_t = -β kl_t, A added at the end, where it is `token_reward`;
    whitened over the batch's tokens; 0 on tokens below the quantile of entropy.
    """
    weights_of = None
    if several == "normalize_then_sum":
        assert ctx.rollout is not None
        weights_of = tuple(float(one.weight) for one in ctx.rollout.rewards)
    found, figures = token_advantages(
        {name: batch[name] for name in _READ if name in batch},
        baseline=baseline,
        scale=scale,
        eps=eps,
        part_weights=weights_of,
        whitened=whitened,
        gamma=gamma,
        beta=beta,
        kl=kl,
        kl_in=kl_in,
        top_entropy=top_entropy,
    )
    ctx.logged["advantage/no_signal"] = figures["no_signal"]
    ctx.logged["advantage/std"] = figures["std"]
    if kl_in != "loss" and "ref_logps" in batch:
        ctx.logged["kl/reward"] = figures["kl"]
    if mask_truncated:
        batch = without_truncated(ctx, batch)
    return batch | {"advantages": found}, carry


advantage = Stage(
    "advantage",
    _advantage,
    writes={"advantages": "B N T"},
    compares=lambda *, baseline: baseline in IN_GROUPS,
)
"""After everything that writes what it reads."""
