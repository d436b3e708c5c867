"""One decoder for every family: its layers, what reads their hidden states, and its cache."""

from dataclasses import dataclass

from ptjax.models.cache import Cached
from ptjax.models.heads import Heads


@dataclass(frozen=True)
class Decoder(Heads, Cached):
    """A decoder's static side; parameters are passed to every method.

    Attributes:
      config: the body's shape and features.
      lora: the adapters' settings, where it has any.
      head: one of `heads.HEADS`.
    """
