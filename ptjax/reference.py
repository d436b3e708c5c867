"""The reference of a run: the policy as it began, its adapters switched off, or another model."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ptjax.errors import UserError, did_you_mean
from ptjax.models.decoder import Decoder
from ptjax.models.load import Bundle
from ptjax.ops.divergence import Teacher
from ptjax.types import Params
from ptjax.workdir import load

MODES = ("live", "cached")


@dataclasses.dataclass(frozen=True)
class Reference:
    """A frozen model beside the policy.

    Attributes:
      model: its static side.
      own: the leaves that are not the policy's frozen ones.
      shares: whether the policy's frozen leaves are the reference's too.
      what: in words, for messages and summaries.
    """

    model: Decoder
    own: Params
    shares: bool
    what: str

    def params(self, frozen: Params) -> Params:
        """All its leaves, given the policy's frozen ones."""
        return {**frozen, **self.own} if self.shares else self.own

    def teacher(self, frozen: Params) -> Teacher:
        """Its output projection, given the policy's frozen leaves: what it is learnt from by."""
        return Teacher(*self.model.projection(self.params(frozen)))

    @property
    def size(self) -> int:
        """Bytes that it takes beside the policy."""
        return sum(leaf.nbytes for leaf in self.own.values())


def make_reference(config: Any, bundle: Bundle, trained: Params, mesh: Mesh) -> Reference:
    """The reference that `config.reference` asks for.

    Without a source it is the policy as it begins. Where fresh adapters alone are trained, that is
    the base model, and no leaf is kept twice; else the trained leaves are copied.

    Args:
      config: the whole config.
      bundle: the policy, adapters in place.
      trained: its trained leaves.
      mesh: where leaves go.

    Raises:
      UserError: a source that does not load, or whose vocabulary is another.
    """
    source = config.reference.source
    if source is not None:
        other = load(
            source,
            param_dtype=config.model.param_dtype,
            mesh=mesh,
            offload=config.model.offload,
        )
        if other.tokenizer.get_vocab() != bundle.tokenizer.get_vocab():
            raise UserError(
                f"config.reference.source: {source} has another vocabulary than "
                f"{config.model.source}: its log-probs would be of other tokens"
            )
        return Reference(other.model, other.params, False, str(source))
    if is_base(config, trained):
        model = dataclasses.replace(bundle.model, lora=None)
        return Reference(model, {}, True, "the policy without its adapters")
    own = jax.tree.map(jnp.copy, trained)
    return Reference(bundle.model, own, True, "a copy of the leaves that are trained")


def is_base(config: Any, trained: Iterable[str]) -> bool:
    """Whether the policy began as its base model, and fresh adapters alone are trained.

    Args:
      config: the whole config.
      trained: names of the trained leaves.
    """
    fresh = config.lora is not None and config.lora.get("adapter") is None
    return fresh and all(_is_adapter(name) for name in trained)


def check_reference(config: Any, asked: bool, follows: bool, *, taught: bool = False) -> None:
    """Refuses settings of `config.reference` that nothing would read, or that exclude each other.

    Args:
      config: the whole config.
      asked: whether the method asks a reference anything.
      follows: whether its reference follows the policy.
      taught: whether its reference is a teacher, whose hidden states are asked for.

    Raises:
      UserError: names the setting.
    """
    settings = config.reference
    if settings.mode not in MODES:
        hint = did_you_mean(str(settings.mode), MODES)
        raise UserError(f"config.reference.mode = {settings.mode!r}{hint}")
    if not asked and (settings.source is not None or settings.mode != "live"):
        raise UserError(
            f"config.reference is set, but {config.method} with these hparams has no reference"
        )
    if taught and settings.source is None:
        raise UserError(f"config.reference.source: {config.method} needs a teacher, another model")
    if taught and settings.mode == "cached":
        raise UserError(
            f"config.reference.mode = 'cached': {config.method} asks for a teacher's hidden "
            "states, which are computed live"
        )
    if follows and (settings.source is not None or settings.mode == "cached"):
        raise UserError(
            "config.hparams.sync_every: a reference that follows the policy can neither be cached "
            "nor come from config.reference.source"
        )


def _is_adapter(name: str) -> bool:
    return name.endswith((".lora_a", ".lora_b", ".dora_m"))
