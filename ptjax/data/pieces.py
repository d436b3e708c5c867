"""Where in a store the tokens of sequences stand."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Pieces(NamedTuple):
    """Sequences, each one stretch of its store or two stretches joined."""

    starts: Int[np.ndarray, "E N"]
    """Where the first stretch begins."""
    lengths: Int[np.ndarray, "E N"]
    """Tokens of the whole sequence."""
    joins: Int[np.ndarray, "E N"]
    """Tokens of the first stretch."""
    resumes: Int[np.ndarray, "E N"]
    """Where the second stretch begins."""

    @classmethod
    def whole(cls, starts: Int[np.ndarray, "E N"], lengths: Int[np.ndarray, "E N"]) -> "Pieces":
        """Sequences of one stretch each."""
        return cls(starts, lengths, lengths, starts + lengths)

    def take(self, chosen: np.ndarray) -> "Pieces":
        """Some of the sequences, in this order."""
        return Pieces(*(values[chosen] for values in self))

    def widened(self, width: int) -> "Pieces":
        """The same with empty sequences appended up to this many."""
        return Pieces(*(np.pad(v, ((0, 0), (0, width - v.shape[1]))) for v in self))

    def positions(self, length: int) -> Int[np.ndarray, "E N T"]:
        """Where in the store each token stands; of no meaning beyond a sequence's end."""
        t = np.arange(length)
        starts, joins, resumes = (
            values[:, :, None] for values in (self.starts, self.joins, self.resumes)
        )
        return np.where(t < joins, starts + t, resumes + t - joins)
