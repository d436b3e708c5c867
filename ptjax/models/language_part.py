"""The language part of a checkpoint of more than text, as the text model that it is on its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ptjax.errors import UserError
from ptjax.models.families import FAMILIES
from ptjax.models.weights import Index, TensorSource, TensorSpec


class Composite(NamedTuple):
    """How a checkpoint of more than text holds its language part.

    Attributes:
      text: the `model_type` that it has on its own.
      renamed: prefixes of its tensors, and what stands in their place on its own.
      other: prefixes of the tensors that are not its.
    """

    text: str
    renamed: Mapping[str, str]
    other: tuple[str, ...]


# The hub's names first, then those of the module as transformers has it today.
COMPOSITES = {
    "gemma3": Composite(
        text="gemma3_text",
        renamed={
            "language_model.model.": "model.",
            "language_model.lm_head.": "lm_head.",
            "model.language_model.": "model.",
        },
        other=(
            "vision_tower.",
            "multi_modal_projector.",
            "model.vision_tower.",
            "model.multi_modal_projector.",
        ),
    )
}
_INHERITED = (
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "pad_token_id",
    "quantization_config",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
)


@dataclass(frozen=True)
class Part:
    """Some tensors of a source, by other names.

    Attributes:
      source: the whole.
      names: the name of each here, and there.
    """

    source: TensorSource
    names: Mapping[str, str]

    @property
    def origin(self) -> str:
        """Where the tensors come from, for messages."""
        return self.source.origin

    def specs(self) -> dict[str, TensorSpec]:
        """Shape and dtype of every tensor, in the checkpoint's order."""
        specs = self.source.specs()
        return {here: specs[there] for here, there in self.names.items()}

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """Returns a copy of the tensor, or of `tensor[index]`."""
        return self.source.read(self.names[name], index)


def language_config(raw: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """What config.json of the text model would hold.

    Args:
      raw: config.json of a `COMPOSITES` row.
      origin: for messages.

    Raises:
      UserError: it has no `text_config`.
    """
    kind, text = raw["model_type"], raw.get("text_config")
    if not isinstance(text, dict):
        raise UserError(f"{origin}: config.json has no text_config, which a {kind} model needs")
    own = COMPOSITES[kind].text
    inherited = {key: raw[key] for key in _INHERITED if key in raw}
    named = {"architectures": [FAMILIES[own].architecture], "model_type": own}
    return {**inherited, **text, **named}


def language_tensors(kind: str, source: TensorSource) -> Part:
    """The tensors of the language part; one that is of no known part keeps its name.

    Args:
      kind: a key of `COMPOSITES`.
      source: the whole checkpoint.
    """
    _, renamed, other = COMPOSITES[kind]
    names = {}
    for there in source.specs():
        if there.startswith(other):
            continue
        prefix = next((prefix for prefix in renamed if there.startswith(prefix)), "")
        names[renamed.get(prefix, "") + there.removeprefix(prefix)] = there
    return Part(source, names)
