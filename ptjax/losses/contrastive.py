"""Contrastive losses of embeddings: one value a query.

B examples, N texts of each: the query, its positive, hard negatives. D features.
"""

import jax.numpy as jnp
from jax.nn import logsumexp
from jaxtyping import Array, Float


def similarities(
    embeddings: Float[Array, "B N D"],
    weights: Float[Array, "B N"],
    *,
    temperature: float = 0.05,
    in_batch: bool = True,
) -> Float[Array, "B M"]:
    """x[i, j] = cos(query_i, candidate_j) / τ; -inf for those that are not candidates of i.

    Candidates are all examples' positives, then all their hard negatives: M = B (N - 1), and the
    positive of query i is candidate i.

    Args:
      embeddings: of any length; a zero vector is similar to nothing.
      weights: 0 where a text is missing.
      temperature: τ.
      in_batch: whether other examples' texts are negatives too; else an example's own alone.
    """
    norms = jnp.sum(jnp.square(embeddings), -1, keepdims=True)
    unit = embeddings / jnp.sqrt(jnp.maximum(norms, 1e-24))
    count, texts, size = embeddings.shape
    candidates = unit[:, 1:].swapaxes(0, 1).reshape(-1, size)
    allowed = (weights[:, 1:] > 0).T.reshape(1, -1)
    if not in_batch:
        allowed &= jnp.tile(jnp.eye(count, dtype=bool), (1, texts - 1))
    return jnp.where(allowed, unit[:, 0] @ candidates.T / temperature, -jnp.inf)


def info_nce(similarity: Float[Array, "B M"]) -> Float[Array, "B"]:
    """L_i = log Σ_j exp x_ij - x_ii: the positive told from all other candidates.

    InfoNCE (1807.03748, equation 4); with hard negatives, supervised SimCSE (2104.08821,
    equation 5). 0 for a query that has no positive.

    Args:
      similarity: from `similarities`; -inf is no candidate.
    """
    positive = jnp.diagonal(similarity)
    there = jnp.isfinite(positive)
    safe = jnp.where(there[:, None], similarity, 0)
    return jnp.where(there, logsumexp(safe, -1) - jnp.diagonal(safe), 0)
