"""Held-out likelihood, and what the model says to a few prompts."""

import math
from collections.abc import Sequence

import jax

from ptjax import sharding
from ptjax.config import Config
from ptjax.data.iterate import Batches
from ptjax.generate.replies import reply
from ptjax.models.load import Bundle
from ptjax.prepare import Run, compute
from ptjax.types import Params


def evaluate(run: Run, params: Params, batches: Batches) -> dict[str, float]:
    """Held-out `eval/loss` (nats a trained token), `eval/perplexity` and `eval/accuracy`."""
    total = None
    for batch in batches:
        part = run.eval_step(params, sharding.put_batch(batch.columns, run.mesh))
        total = part if total is None else jax.tree.map(lambda a, b: a + b, total, part)
    means = {name: float(mean.value()) for name, mean in (total or {}).items()}
    loss = means["nll"]
    perplexity = math.exp(loss) if loss < 700 else math.inf
    return {"eval/loss": loss, "eval/perplexity": perplexity, "eval/accuracy": means["accuracy"]}


def sample_prompts(bundle: Bundle, prompts: Sequence[str], config: Config) -> list[tuple[str, str]]:
    """(prompt, reply) pairs, by the config's settings."""
    replies = reply(
        bundle,
        prompts,
        max_tokens=config.samples.max_tokens,
        temperature=config.samples.temperature,
        seed=config.seed,
        compute=compute(config),
    )
    return list(zip(prompts, replies, strict=True))
