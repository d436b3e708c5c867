"""How a forward pass is computed, whatever the model: dtype, what is kept of layers, kernels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from ptjax.errors import UserError, did_you_mean
from ptjax.models.layers import CARRIED, PROJECTED
from ptjax.ops.attention import KERNELS
from ptjax.ops.span import ATTENDED
from ptjax.sharding import HOST


def _offloaded(*names: str) -> Callable[..., Any]:
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(names),
        offload_src="device",
        offload_dst=HOST,
    )


REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names(PROJECTED),
    "dots_and_attention": jax.checkpoint_policies.save_only_these_names(PROJECTED, ATTENDED),
    "offload_dots": _offloaded(PROJECTED, ATTENDED),
    "minimal": _offloaded(CARRIED),
}
"""What is kept of a layer for the backward pass, by name; all else is computed again.

A projection is kept once, adapter included: keeping every matrix product would keep the base's and
the adapter's apart. `offload_dots` keeps what `dots_and_attention` does in the host's memory.
`minimal` keeps what enters a layer alone, there too, and computes heads and hidden units in parts
(`ptjax.models.parts`).
"""


@dataclass(frozen=True)
class Compute:
    """How a forward pass is computed, whatever the model.

    Attributes:
      dtype: of activations and of the parameters as they are used.
      remat: what the backward pass recomputes of a layer: a key of `REMAT`.
      dropout: probability on embeddings and on each block's output, in training.
      attention: which kernel: one of `ops.attention.KERNELS`.
    """

    dtype: str = "float32"
    remat: str = "none"
    dropout: float = 0.0
    attention: str = "auto"

    def __post_init__(self):
        if self.attention not in KERNELS:
            hint = did_you_mean(self.attention, KERNELS)
            raise UserError(f"attention: {self.attention!r} is none of {', '.join(KERNELS)}{hint}")
        if self.remat not in REMAT:
            raise UserError(
                f"config.model.remat: unknown {self.remat!r}{did_you_mean(self.remat, REMAT)}"
            )


DEFAULT = Compute()
