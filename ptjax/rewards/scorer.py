"""A model with a scalar head, loaded once: token ids to scores, and texts to token ids."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptjax.errors import UserError


@dataclass(frozen=True)
class Scorer:
    """A loaded reward model.

    Attributes:
      chat: its tokenizer and template, as the data pipeline uses them.
      templated: whether it has a chat template.
      room: tokens that its positions hold.
    """

    chat: Any
    templated: bool
    room: int
    _run: Callable[[np.ndarray, np.ndarray], np.ndarray]

    def prompt(self, given: Any) -> Any:
        """A prompt as the model reads it: messages where it has a template, else text."""
        if self.templated:
            return [{"role": "user", "content": given}] if isinstance(given, str) else given
        return given if isinstance(given, str) else given[-1]["content"]

    def scores(self, rows: Sequence[np.ndarray], batch_size: int) -> list[np.ndarray | None]:
        """Each token's score, float32, by row; None for a row that is empty or too long."""
        found: list[np.ndarray | None] = [None] * len(rows)
        fitting = [i for i, ids in enumerate(rows) if 0 < len(ids) <= self.room]
        fitting.sort(key=lambda i: (len(rows[i]), i))
        for start in range(0, len(fitting), batch_size):
            batch = fitting[start : start + batch_size]
            length = max(16, 1 << (max(len(rows[i]) for i in batch) - 1).bit_length())
            tokens = np.zeros((batch_size, 1, length), np.int32)
            valid = np.zeros((batch_size, 1, length), bool)
            for place, i in enumerate(batch):
                tokens[place, 0, : len(rows[i])], valid[place, 0, : len(rows[i])] = rows[i], True
            made = self._run(tokens, valid)
            for place, i in enumerate(batch):
                found[i] = made[place, : len(rows[i])]
        return found


@functools.lru_cache(maxsize=2)
def scorer(source: str, dtype: str) -> Scorer:
    """Loads a reward model.

    Raises:
      UserError: nothing there, or a model without a scalar head.
    """
    import jax

    from ptjax.data.chat import Chat
    from ptjax.forward import ForwardOptions, forward
    from ptjax.models.compute import Compute
    from ptjax.workdir import load

    bundle = load(source)
    if bundle.model.head != "score":
        raise UserError(f"reward model: {source} is a language model; it has no scalar head")
    options = ForwardOptions(compute=Compute(dtype=dtype))

    @jax.jit
    def run(params: Any, tokens: Any, valid: Any) -> Any:
        batch = {"tokens": tokens, "valid": valid, "mask": valid.astype("float32")}
        return forward(bundle.model, params, batch, fields=("scores",), options=options).scores

    return Scorer(
        chat=Chat(bundle.tokenizer, train_on="last"),
        templated=bool(bundle.tokenizer.chat_template),
        room=bundle.model.config.max_positions,
        _run=lambda tokens, valid: np.asarray(run(bundle.params, tokens, valid))[:, 0],
    )
