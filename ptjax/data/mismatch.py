"""Each prompt with the completion of another example: what KTO measures its baseline on."""

import dataclasses

import numpy as np
from jaxtyping import Int, Integer

from ptjax.data.encode_rows import hash_of
from ptjax.data.examples import Examples
from ptjax.data.pieces import Pieces
from ptjax.errors import UserError
from ptjax.hosts import exchange


def with_mismatched(examples: Examples, max_length: int) -> Examples:
    """Gives every example its prompt with a completion that answers another prompt.

    Within a source each completion is given once, cut to `max_length` tokens, so that the
    mismatched have the labels and lengths of the data. Where prompts differ, an example gets the
    completion of the one before it.

    Raises:
      UserError: all prompts of a source are the same.

    """
    others = np.empty(len(examples), np.int64)
    for index, encodings in enumerate(examples.encodings):
        mine = np.flatnonzero(examples.source == index)
        if len(mine):
            own = mine[encodings.sequences.mine(examples.row[mine])].tolist()
            hashes = [_prompt(examples, example) for example in own]
            prompts = exchange.gathered(np.array(hashes, np.uint64))
            if (prompts == prompts[0]).all():
                raise UserError(
                    f"{encodings.source.path}: the examples trained on, or those held out "
                    f"({len(mine)}), have one prompt alone; kind 'mismatched' measures each prompt "
                    "with the completion of another, so give rows of another prompt"
                )
            others[mine] = mine[_others(prompts)]
    starts, prompts = examples.pieces.starts[:, 0], examples.prompts
    resumes = starts[others] + prompts[others]
    completions = examples.lengths[others, 0] - prompts[others]
    lengths = np.minimum(prompts + completions, max_length)
    columns = (starts, lengths, prompts, resumes)
    pieces = Pieces(*(column[:, None] for column in columns))
    return dataclasses.replace(examples, mismatched=pieces)


def _prompt(examples: Examples, example: int) -> int:
    """A hash of an example's prompt."""
    tokens, _ = examples.tokens(example)
    prompt = tokens[: examples.prompts[example]]
    return hash_of(prompt.tobytes())


def _others(prompts: Integer[np.ndarray, " E"]) -> Int[np.ndarray, " E"]:
    """By example, one of another prompt; each is taken once as far as that can be.

    The examples are ordered by prompt, prompts as they first come, and rotated by the most that
    have the same. Where those are more than all others, the surplus takes the others in turn.
    """
    _, firsts, which = np.unique(prompts, return_index=True, return_inverse=True)
    places = firsts[which]
    order = np.argsort(places, kind="stable")
    others = np.empty_like(order)
    others[order] = np.roll(order, np.bincount(places).max())
    surplus = np.flatnonzero(places[others] == places)
    if len(surplus):
        others[surplus] = np.resize(np.flatnonzero(places != places[surplus[0]]), len(surplus))
    return others
