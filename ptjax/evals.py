"""Held-out likelihood, and what the model says to a few prompts."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax

from ptjax import sharding
from ptjax.algorithms.sft import LIKELIHOOD
from ptjax.config import Config
from ptjax.data.iterate import Batches
from ptjax.generate.replies import reply
from ptjax.job import Run
from ptjax.models.load import Bundle
from ptjax.passes import compute
from ptjax.types import Mean, Params, TrainState

HEADLINES = ("loss", "perplexity", "accuracy", "rewards/margin", "kl", "rollout/reward")
"""What of the held-out numbers is shown as a run goes."""


def evaluate(run: Run, state: TrainState, params: Params, batches: Batches) -> dict[str, float]:
    """What the method is judged by on held-out data: `eval/loss`, and `eval/...` of its metrics.

    Where the loss is a likelihood (in nats a token), its perplexity too; and what stages measure,
    a mean over examples, or over the answers that have a value.

    Args:
      run: made by `prepare`.
      state: what stages remember; they do not learn from held-out data.
      params: all leaves, as they are judged: stages sample and score with them too.
      batches: the held-out data.
    """
    state = dataclasses.replace(state, params={name: params[name] for name in state.params})
    total, said = None, dict[str, Mean]()
    for batch in batches:
        columns = sharding.put_batch(batch.columns, run.mesh, whole=run.pipeline.whole)
        found = run.stage(state, columns, training=False, host=batch)
        columns, logged = found.batch, found.logged
        examples = sum(example >= 0 for example in batch.examples)
        for name in logged.keys() & set(run.measures):
            count = found.counted.get(name, examples)
            part = Mean(logged[name] * count, count)
            said[name] = said[name] + part if name in said else part
        part = run.eval_step(params, columns, run.teacher(state))
        total = part if total is None else jax.tree.map(lambda a, b: a + b, total, part)
    terms, metrics = jax.device_get(total) if total is not None else ({}, {})
    loss = sum(float(mean.value()) for mean in terms.values())
    found = {"eval/loss": loss}
    if run.bound.judged.algorithm is LIKELIHOOD:
        found["eval/perplexity"] = math.exp(loss) if loss < 700 else math.inf
    measured = metrics | {name: said[name] for name in sorted(said)}
    return found | {f"eval/{name}": float(mean.value()) for name, mean in measured.items()}


def in_words(found: Mapping[str, float]) -> str:
    """The held-out numbers that matter most, on one line; all are in the metrics."""
    told = []
    for name in HEADLINES:
        if (value := found.get(f"eval/{name}")) is not None:
            told.append(f"{name} {value:.1%}" if name == "accuracy" else f"{name} {value:.4g}")
    return "held-out " + ", ".join(told)


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
