"""Texts as vectors, by a model that the method `embed` trained."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ptjax.buckets import bucket
from ptjax.data.chat import Chat
from ptjax.data.formats import Example
from ptjax.data.messages import BadForm
from ptjax.errors import UserError, did_you_mean
from ptjax.forward import ForwardOptions, forward
from ptjax.models.bundle import Bundle
from ptjax.models.decoder import Decoder
from ptjax.ops.pooling import POOLINGS
from ptjax.types import Batch, Params
from ptjax.workdir import RunBundle


def embed(
    bundle: Bundle, texts: Sequence[str], *, pooling: str | None = None, batch_size: int = 16
) -> Float[np.ndarray, "texts D"]:
    """Unit vectors, one a text, whose products are cosines.

    Of the tokens that the method `embed` trains: the whole text and the end-of-sequence token.

    Args:
      bundle: the model.
      texts: taken whole, without a chat template.
      pooling: `last` token, or `mean` over tokens; None: as the model's run had it, else `last`.
      batch_size: texts that are embedded together.

    Raises:
      UserError: a text that is empty or longer than the model's positions, no such pooling.
    """
    if isinstance(texts, str):
        raise UserError("embed: one text is given; a list of texts is expected")
    if pooling is None:
        pooling = bundle.pooling if isinstance(bundle, RunBundle) else "last"
    if pooling not in POOLINGS:
        raise UserError(f"embed: pooling {pooling!r}{did_you_mean(pooling, POOLINGS)}")
    rows, room = [], bundle.model.config.max_positions
    encoded = Chat(bundle.tokenizer, train_on="all").encode([Example(text=text) for text in texts])
    for number, made in enumerate(encoded):
        if isinstance(made, BadForm) or not made:
            raise UserError(f"embed: text {number}: {made or 'it is empty'}")
        rows.append(made[0].tokens)
        if len(rows[-1]) > room:
            raise UserError(
                f"embed: text {number} has {len(rows[-1])} tokens, more than the model's {room} "
                "positions; cut it"
            )
    found = np.zeros((len(rows), bundle.model.config.embed), np.float32)
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    for start in range(0, len(order), batch_size):
        some = order[start : start + batch_size]
        tokens = np.zeros((batch_size, 1, bucket(len(rows[some[-1]]), least=16)), np.int32)
        valid = np.zeros(tokens.shape, bool)
        for place, row in enumerate(some):
            tokens[place, 0, : len(rows[row])] = rows[row]
            valid[place, 0, : len(rows[row])] = True
        batch: Batch = {"tokens": jnp.asarray(tokens), "valid": jnp.asarray(valid)}
        vectors = _vectors(bundle.params, batch, model=bundle.model, pooling=pooling)
        found[some] = vectors[: len(some)]
    return found


@functools.partial(jax.jit, static_argnames=("model", "pooling"))
def _vectors(
    params: Params, batch: Batch, *, model: Decoder, pooling: str
) -> Float[Array, "rows D"]:
    batch = batch | {"mask": batch["valid"].astype(jnp.float32)}
    options = ForwardOptions(pooling=pooling)
    found = forward(model, params, batch, fields=("embedding",), options=options).embedding[:, 0]
    return found / jnp.maximum(jnp.linalg.norm(found, axis=-1, keepdims=True), 1e-12)
