"""Contrastive fine-tuning: the decoder becomes an embedder."""

import jax.numpy as jnp

from ptjax.algorithms.base import Algorithm
from ptjax.errors import UserError
from ptjax.losses.contrastive import info_nce, similarities
from ptjax.types import Batch, Mean, Outputs


def embed(
    outputs: Outputs, batch: Batch, *, temperature: float = 0.05, in_batch: bool = True
) -> tuple[Mean, dict[str, Mean]]:
    """InfoNCE (1807.03748, equation 4) of queries against positives and negatives.

    A text that is its own positive makes this unsupervised SimCSE (2104.08821): dropout alone
    tells the two apart, so `config.model.dropout` must be above 0.

    Args:
      outputs: `embedding`.
      batch: `weights`; the query, its positive, hard negatives.
      temperature: τ; similarities are cosines divided by it.
      in_batch: whether other examples' texts are negatives too.
    """
    similarity = similarities(
        outputs.embedding, batch["weights"], temperature=temperature, in_batch=in_batch
    )
    weights = batch["weights"][:, 0] * (batch["weights"][:, 1] > 0)
    positive = jnp.diagonal(similarity)
    others = jnp.isfinite(similarity) & ~jnp.eye(*similarity.shape, dtype=bool)
    nearest = jnp.max(jnp.where(others, similarity, -jnp.inf), -1)
    found = jnp.isfinite(positive)
    between = jnp.sum(jnp.where(others, similarity, 0), -1) / jnp.maximum(jnp.sum(others, -1), 1)
    metrics = {
        "accuracy": Mean.of((positive > nearest).astype(jnp.float32), weights),
        "similarity/positive": Mean.of(jnp.where(found, positive, 0) * temperature, weights),
        "similarity/others": Mean.of(between * temperature, weights),
    }
    return Mean.of(info_nce(similarity), weights), metrics


def _needs(*, temperature: float) -> tuple[str, ...]:
    if not temperature > 0:
        raise UserError(f"hparams.temperature = {temperature}: it must be positive")
    return ("embedding",)


EMBED = Algorithm(embed, needs=_needs, data="contrastive", coupled=lambda *, in_batch: in_batch)
