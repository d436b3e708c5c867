"""A model with all that belongs to it, and what may be done to it before it is trained."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool

from ptjax import sharding
from ptjax.errors import UserError, did_you_mean
from ptjax.models.decoder import Decoder
from ptjax.models.families import CRITIC, FAMILIES, SCORE, VALUE, table
from ptjax.models.heads import HEADS
from ptjax.models.spec import init
from ptjax.models.tokenizer import add_special_tokens
from ptjax.types import Leaf, Params

_log = logging.getLogger(__name__)


@dataclass
class Bundle:
    """A model that is ready to train, sample from or export.

    Attributes:
      model: its static side.
      params: all leaves, by name.
      tokenizer: a transformers fast tokenizer.
      hf_config: the contents of config.json.
      generation_config: the contents of generation_config.json, empty where there is none.
      dtypes: how each Hugging Face tensor was stored.
      source: where it came from, for messages.
      part_of: the `model_type` of the checkpoint there, where this is its language part alone.
    """

    model: Decoder
    params: Params
    tokenizer: Any
    hf_config: dict[str, Any]
    generation_config: dict[str, Any]
    dtypes: dict[str, np.dtype]
    source: str
    part_of: str | None = None

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a generation: the generation config's, else the tokenizer's end token."""
        stops = self.generation_config.get("eos_token_id", self.tokenizer.eos_token_id)
        stops = stops if isinstance(stops, list) else [stops]
        return tuple(stop for stop in {*stops, self.tokenizer.eos_token_id} if stop is not None)


def with_tokens(bundle: Bundle, tokens: Sequence[str], mesh: Mesh | None = None) -> Bundle:
    """The same model with new control tokens, each row the mean of those in use before.

    A row is new where its token is: embeddings that are padded beyond the tokenizer have rows to
    spare, which nothing ever trained, and grow only when those run out.

    Args:
      bundle: its tokenizer is changed in place.
      tokens: their text; one that the tokenizer knows keeps its row.
      mesh: where the grown leaves go; None for the first device.
    """
    if not tokens:
        return bundle
    config = bundle.model.config
    in_use = np.zeros(config.vocab, bool)
    in_use[[i for i in bundle.tokenizer.get_vocab().values() if i < config.vocab]] = True
    added = add_special_tokens(bundle.tokenizer, list(tokens))
    if not added:
        return bundle
    vocab = max(config.vocab, len(bundle.tokenizer))
    new = np.zeros(vocab, bool)
    new[config.vocab :] = True
    new[added] = True
    params = dict(bundle.params)
    for name in ("embed", "head", f"{CRITIC}embed"):
        if name not in params:
            continue
        axes = bundle.model.table[name].names
        shape = tuple(vocab if axis == "vocab" else config.dims[axis] for axis in axes)
        mesh_ = sharding.make_mesh({}, list(params[name].devices())[:1]) if mesh is None else mesh
        fill = jax.jit(
            functools.partial(_fill, axis=axes.index("vocab")),
            out_shardings=sharding.named(axes, shape, mesh_),
        )
        params[name] = fill(params[name], in_use, new)
    model = replace(bundle.model, config=config.with_vocab(vocab))
    hf_config = {**bundle.hf_config, "vocab_size": vocab}
    return replace(bundle, model=model, params=params, hf_config=hf_config)


def _fill(leaf: Array, in_use: Bool[Array, "old"], new: Bool[Array, "new"], *, axis: int) -> Array:
    """The leaf grown along an axis, its new rows the mean of those in use."""

    def along(mask: Array) -> Array:
        return jnp.expand_dims(mask, 1 - axis)

    kept = jnp.where(along(in_use), leaf.astype(jnp.float32), 0)
    mean = jnp.sum(kept, axis=axis, keepdims=True) / jnp.sum(in_use)
    padding = [(0, 0), (0, 0)]
    padding[axis] = (0, new.shape[0] - in_use.shape[0])
    return jnp.where(along(new), mean.astype(leaf.dtype), jnp.pad(leaf, padding))


def check_head(head: str | None, own: str, source: str) -> None:
    """Checks the head that was asked for against the one that a model has.

    Args:
      head: one of `HEADS`, or None for whichever the model has.
      own: the model's.
      source: for messages.

    Raises:
      UserError: no such head, or an LM head of a model that has a scalar one in its place.
    """
    if head is not None and head not in HEADS:
        raise UserError(f"head: unknown {head!r}{did_you_mean(head, HEADS)}")
    if head not in (None, "score") and own == "score":
        raise UserError(
            f"{source} is a reward model: it scores text and can neither write nor be trained to; "
            "name the model that it was made from"
        )


def with_head(
    bundle: Bundle,
    head: str | None,
    *,
    seed: int = 0,
    mesh: Mesh | None = None,
    critic: Bundle | None = None,
) -> Bundle:
    """The same model with the head asked for.

    `lm` leaves out a value head or critic that it has. `lm_value` and `lm_critic` begin with values
    of 0, a critic with the body of the policy or of another model; a reward model keeps its scalar
    head (2203.02155, C.4). `score` gives a language model a new scalar head.

    The weights of that are normal with standard deviation 1/√D: D numbers of unit size, as the
    final norm leaves them, give scores of unit size whatever the width. It is 1/√(D+1) in
    2009.01325 (B.1); transformers' 0.02 would make scores grow with √D.

    Args:
      bundle: a model without adapters.
      head: one of `HEADS`; None changes nothing.
      seed: of the new weights.
      mesh: where they go; None for the first device.
      critic: what a critic begins as, of the policy's shape; None for the policy itself.

    Raises:
      UserError: an unknown head, an LM head of a reward model, a scalar head of a flax module, a
        critic of another shape.
    """
    check_head(head, bundle.model.head, bundle.source)
    if critic is not None and head != "lm_critic":
        raise UserError(f"critic {critic.source}: the model has head {head!r} and no critic")
    if head in (None, bundle.model.head):
        return bundle
    if bundle.hf_config.get("model_type") == "flax":
        raise UserError(f"{bundle.source}: a flax module of yours has no scalar head")
    bundle = policy(bundle)
    if head == "lm":
        return bundle
    mesh = sharding.one_device() if mesh is None else mesh
    if head != "score":
        new = _value(bundle, mesh) if head == "lm_value" else _critic(bundle, critic, mesh)
        return replace(
            bundle, model=replace(bundle.model, head=head), params={**bundle.params, **new}
        )
    key = jax.random.fold_in(jax.random.key(seed), 2**31 - 2)
    score = init({"score": SCORE}, bundle.model.config.dims, key)["score"]
    score = jax.device_put(score, sharding.named(SCORE.names, score.shape, mesh))
    kept = {name: leaf for name, leaf in bundle.params.items() if name != "head"}
    return replace(
        bundle,
        model=replace(bundle.model, head="score"),
        params={**kept, "score": score},
        hf_config=_classifier(bundle),
        dtypes={name: d for name, d in bundle.dtypes.items() if name != "lm_head.weight"},
    )


def policy(bundle: Bundle) -> Bundle:
    """A language model without the value head or critic that it was trained with.

    Adapters of its own stay; any other model is returned as it is.
    """
    if bundle.model.head in ("lm", "score"):
        return bundle
    params = {
        name: leaf
        for name, leaf in bundle.params.items()
        if name != "value" and not name.startswith(CRITIC)
    }
    return replace(bundle, model=replace(bundle.model, head="lm"), params=params)


def _value(bundle: Bundle, mesh: Mesh) -> Params:
    """A value head of zeros."""
    shape = (bundle.model.config.embed, 1)
    return {"value": jnp.zeros(shape, device=sharding.named(VALUE.names, shape, mesh))}


def _critic(bundle: Bundle, source: Bundle | None, mesh: Mesh) -> Params:
    """A second body with a scalar head, the leaves `critic.*`; of the policy itself it is a copy.

    Raises:
      UserError: a source whose layers are not the policy's.
    """
    wanted = bundle.model.config
    made = bundle if source is None else source
    if replace(made.model.config, tied=wanted.tied) != wanted:
        raise UserError(
            f"a critic of {made.source} cannot stand beside {bundle.source}: its layers or its "
            "vocabulary are others"
        )
    head = made.params["score"] if "score" in made.params else _value(bundle, mesh)["value"]
    body = table(wanted, "score")
    leaves = {name: head if name == "score" else made.params[name] for name in body}
    if source is None:  # leaves of one state share no memory: a step donates them
        leaves = jax.tree.map(jnp.copy, leaves)

    def put(name: str, leaf: Leaf) -> Leaf:
        def at(part: Array) -> Array:
            place = sharding.named(body[name].names, part.shape, mesh)
            return jax.device_put(part, sharding.on_host(place, sharding.is_on_host(part)))

        return jax.tree.map(at, leaf)

    return {CRITIC + name: put(name, leaf) for name, leaf in leaves.items()}


def _classifier(bundle: Bundle) -> dict[str, Any]:
    """config.json of a reward model; gives the tokenizer a padding token that ends no text.

    transformers reads a score at the last token that is not padding. Where padding is the end
    token, as it is in many models, that would be the one before the end.
    """
    tokenizer, ends = bundle.tokenizer, bundle.stop_ids
    found = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id)
    usable = [token for token in found if token is not None and token not in ends]
    if not usable:
        where = bundle.source
        _log.warning("%s: no token to pad with: transformers will score one text at a time", where)
    pad = usable[0] if usable else None
    if pad is not None and pad != tokenizer.pad_token_id:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    return {
        **bundle.hf_config,
        "architectures": [FAMILIES[bundle.model.config.family].classifier],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "pad_token_id": pad,
    }
