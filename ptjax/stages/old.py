"""What the policy said of its samples before it learnt from them: log-probs, entropy."""

from ptjax.stages.base import Context, Stage
from ptjax.types import Batch


def _old_logps(ctx: Context, batch: Batch, carry: None) -> tuple[Batch, None]:
    """Adds `old_logps`: under the policy as it stands, before the updates that will follow."""
    return batch | {"old_logps": ctx.policy(batch, ("logps",)).logps}, carry


def _old_outputs(ctx: Context, batch: Batch, carry: None) -> tuple[Batch, None]:
    """Adds `old_logps` and `old_entropy`, of one pass."""
    outputs = ctx.policy(batch, ("logps", "entropy"))
    return batch | {"old_logps": outputs.logps, "old_entropy": outputs.entropy}, carry


def asks_entropy(*, top_entropy: float, entropy_target: float | None) -> bool:
    """Whether something reads `old_entropy`."""
    return top_entropy < 1 or entropy_target is not None


def off_policy(*, epochs: int = 1, minibatches: int = 1, sampler_every: int = 1) -> bool:
    """Whether some update is of another policy than the one that sampled."""
    return epochs * minibatches > 1 or sampler_every > 1


def _asks_log_probs(
    *,
    top_entropy: float,
    entropy_target: float | None,
    epochs: int = 1,
    minibatches: int = 1,
    sampler_every: int = 1,
) -> bool:
    asked = asks_entropy(top_entropy=top_entropy, entropy_target=entropy_target)
    apart = off_policy(epochs=epochs, minibatches=minibatches, sampler_every=sampler_every)
    return apart and not asked


old_logps = Stage(
    "old_logps",
    _old_logps,
    writes={"old_logps": "B N T"},
    passes=1,
    wanted=_asks_log_probs,
)
"""For one update of a rollout that the policy sampled they are its own, and no pass is made."""

old_outputs = Stage(
    "old_outputs",
    _old_outputs,
    writes={"old_logps": "B N T", "old_entropy": "B N T"},
    passes=1,
    wanted=asks_entropy,
)
"""Where something asks for entropy."""
