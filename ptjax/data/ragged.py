"""One number a token, computed once for every example and read again by the collator."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Numbers of the tokens of sequences, one sequence after the other."""

    values: Float[np.ndarray, " F"]
    lengths: Int[np.ndarray, "E N"]
    starts: Int[np.ndarray, "E N"]
    """Where in `values` a sequence begins."""

    @classmethod
    def of(cls, values: Float[np.ndarray, " F"], lengths: Int[np.ndarray, "E N"]) -> "Ragged":
        """The sequences stand in the order of the examples, those of one example together."""
        ends = np.cumsum(lengths.ravel()).reshape(lengths.shape)
        return cls(values, lengths, ends - lengths)

    @classmethod
    def empty(cls, lengths: Int[np.ndarray, "E N"]) -> "Ragged":
        """Zeros, to be filled by `put`."""
        return cls.of(np.zeros(int(lengths.sum()), np.float32), lengths)

    def put(self, examples: np.ndarray, column: Float[np.ndarray, "B N T"]) -> None:
        """Takes over a column of a batch whose rows are these examples; -1 is filler."""
        rows = np.flatnonzero(examples >= 0)
        places, there = self._places(examples[rows], column.shape[2])
        self.values[places[there]] = column[rows][there]

    def column(self, examples: np.ndarray, length: int) -> Float[np.ndarray, "B N T"]:
        """A column of a batch of these examples, 0 where there is no token."""
        made = np.zeros((len(examples), self.lengths.shape[1], length), np.float32)
        rows = np.flatnonzero(examples >= 0)
        places, there = self._places(examples[rows], length)
        part = np.zeros(there.shape, np.float32)
        part[there] = self.values[places[there]]
        made[rows] = part
        return made

    def _places(self, examples: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        t = np.arange(length)
        there = t < self.lengths[examples][:, :, None]
        return self.starts[examples][:, :, None] + t, there
