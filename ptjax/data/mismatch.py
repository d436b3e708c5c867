"""Each prompt with the completion of another example: what KTO measures its baseline on."""

import dataclasses
import hashlib

import numpy as np

from ptjax.data.examples import Examples
from ptjax.data.pieces import Pieces
from ptjax.errors import UserError


def with_mismatched(examples: Examples, max_length: int) -> Examples:
    """Gives every example its prompt with a completion that answers another prompt.

    Example i gets the completion of the nearest example before it, in its source's order and
    around its beginning, whose prompt differs; cut to `max_length` tokens.

    Raises:
      UserError: all prompts of a source are the same.

    """
    others = np.empty(len(examples), np.int64)
    for index, encodings in enumerate(examples.encodings):
        mine = np.flatnonzero(examples.source == index)
        if len(mine):
            prompts = [_prompt(examples, example) for example in mine.tolist()]
            if len(set(prompts)) < 2:
                raise UserError(
                    f"{encodings.source.path}: the examples trained on, or those held out "
                    f"({len(mine)}), have one prompt alone; kind 'mismatched' measures each prompt "
                    "with the completion of another, so give rows of another prompt"
                )
            others[mine] = mine[_before(np.unique(prompts, return_inverse=True)[1])]
    starts, prompts = examples.pieces.starts[:, 0], examples.prompts
    resumes = starts[others] + prompts[others]
    completions = examples.lengths[others, 0] - prompts[others]
    lengths = np.minimum(prompts + completions, max_length)
    columns = (starts, lengths, prompts, resumes)
    pieces = Pieces(*(column[:, None] for column in columns))
    return dataclasses.replace(examples, mismatched=pieces)


def _prompt(examples: Examples, example: int) -> bytes:
    """A hash of an example's prompt."""
    tokens, _ = examples.tokens(example)
    prompt = tokens[: examples.prompts[example]]
    return hashlib.blake2b(prompt.tobytes(), digest_size=8).digest()


def _before(prompts: np.ndarray) -> np.ndarray:
    """By place, the nearest place before it, around the beginning, with another prompt."""
    changes = prompts != np.roll(prompts, 1)
    places = np.arange(len(prompts))
    last = np.maximum.accumulate(np.where(changes, places, -1))
    last = np.where(last < 0, np.flatnonzero(changes)[-1], last)  # the run goes around the end
    return (last - 1) % len(prompts)
