"""The order of work: which completion is written in which row, and when its prompt is read.

Completions are written in a fixed number of rows. One that ends leaves its row to the next; those
of one prompt follow each other, for they share what was read of it. What the device runs: steps.py.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from ptjax import sharding
from ptjax.buckets import bucket
from ptjax.generate import steps
from ptjax.generate.sampling import Sampling
from ptjax.generate.transcript import Transcript
from ptjax.models.cache import Cache
from ptjax.models.compute import Compute
from ptjax.models.decoder import Decoder
from ptjax.types import Weights

STREAMED = 4
"""Steps between two looks of the host where text is streamed."""
REFILLED = 8
"""While completions wait for a row, decoding stops when one row in so many has ended."""


@dataclass
class Writer:
    """Writes `n` completions of each prompt; completion i is one of prompt i // n.

    Attributes:
      model: the decoder.
      params: all its leaves.
      sampling: how tokens are drawn.
      stop_ids: tokens that end a completion.
      compute: dtype of activations and cache.
      mesh: where the parameters lie, None for a single device.
      prompts: token ids.
      n: completions of a prompt.
      transcripts: where each completion is written, with its limit.
      seeds: uint32 [completions, 2].
      on_tokens: called with a completion's index and its new text.
    """

    model: Decoder
    params: Weights
    sampling: Sampling
    stop_ids: np.ndarray
    compute: Compute
    mesh: Mesh | None
    prompts: Sequence[Sequence[int]]
    n: int
    transcripts: Sequence[Transcript]
    seeds: np.ndarray
    on_tokens: Callable[[int, str], None] | None
    _waiting: deque[int] = field(default_factory=deque)
    _read: dict[int, int] = field(default_factory=dict)
    """Prompts whose keys and values are at hand -> which of them."""

    def write(self, rows: int, longest: int) -> None:
        """Writes all completions, `rows` at a time, those of the longest prompts first.

        Rows hold `longest` tokens, or more where these completions need it.
        """
        order = sorted(range(len(self.prompts)), key=lambda i: -len(self.prompts[i]))
        self._waiting.extend(i * self.n + copy for i in order for copy in range(self.n))
        size, together = rows_and_prompts(rows, self.n, len(order), self.mesh)
        batches = [order[i : i + together] for i in range(0, len(order), together)]
        needed = (len(self.prompts[i // self.n]) + self.transcripts[i].limit for i in self._waiting)
        longest = max(longest, *needed)
        state = steps.begin(self.model, size, slots(longest), self.compute.dtype)
        owner, ended = np.full(size, -1), np.ones(size, bool)
        stride = STREAMED if self.on_tokens else steps.STRETCH
        cache = None
        while True:
            while self._waiting and ended.any():
                if self._waiting[0] // self.n not in self._read:
                    cache = self._prefill(batches.pop(0), together)
                state = self._admit(state, cache, owner, ended)
            if ended.all():
                return
            enough = max(size // REFILLED, 1) if self._waiting else size
            made, state = steps.decode(
                self.model,
                self.params,
                state,
                self._put(ended),
                np.int32(stride),
                np.int32(enough),
                self.sampling,
                self.stop_ids,
                compute=self.compute,
            )
            self._take(made, owner, ended)

    def _prefill(self, chosen: Sequence[int], together: int) -> Cache:
        """Reads some prompts, all but their last tokens."""
        length = places_of(max(len(self.prompts[i]) for i in chosen))
        tokens, counts = np.zeros((together, length), np.int32), np.zeros(together, np.int32)
        for row, i in enumerate(chosen):
            counts[row] = len(self.prompts[i]) - 1
            tokens[row, : counts[row]] = self.prompts[i][:-1]
        self._read = {i: row for row, i in enumerate(chosen)}
        return steps.prefill(
            self.model, self.params, self._put(tokens), self._put(counts), compute=self.compute
        )

    def _admit(
        self, state: steps.Rows, cache: Any, owner: np.ndarray, ended: np.ndarray
    ) -> steps.Rows:
        """Gives rows that have ended to those who wait, as far as their prompts are at hand."""
        which = np.full(len(owner), -1, np.int32)
        last, limit = np.zeros((2, len(owner)), np.int32)
        seeds = np.zeros((len(owner), 2), np.uint32)
        for row in np.flatnonzero(ended):
            if not self._waiting or self._waiting[0] // self.n not in self._read:
                break
            i = self._waiting.popleft()
            prompt = i // self.n
            owner[row], ended[row] = i, False
            which[row], last[row] = self._read[prompt], self.prompts[prompt][-1]
            seeds[row], limit[row] = self.seeds[i], self.transcripts[i].limit
        return steps.admit(state, cache, *map(self._put, (which, last, seeds, limit)))

    def _take(self, made: steps.Steps, owner: np.ndarray, ended: np.ndarray) -> None:
        """Writes what some steps made into the transcripts; says which rows have ended."""
        tokens, logps, done, _ = jax.device_get(made)
        for row in np.flatnonzero(~ended):
            kept, i = tokens[row] >= 0, int(owner[row])
            text = self.transcripts[i].take(tokens[row][kept].tolist(), logps[row][kept].tolist())
            if text and self.on_tokens:
                self.on_tokens(i, text)
            ended[row] = done[row] or self.transcripts[i].finished is not None

    def _put(self, x: np.ndarray) -> Array:
        """Rows over the batch axes of the mesh."""
        if self.mesh is None:
            return jnp.asarray(x)
        return sharding.put_rows(x, self.mesh, whole=True)


def rows_at_once(rows: int, mesh: Mesh | None) -> int:
    """A bucket for so many rows that divides over the mesh: what is decoded together."""
    size = bucket(rows)
    return size if mesh is None else size + -size % sharding.row_shards(mesh)


def rows_and_prompts(rows: int, n: int, prompts: int, mesh: Mesh | None) -> tuple[int, int]:
    """(completions that are written together, prompts that are read together).

    Args:
      rows: completions that may be written together.
      n: completions of a prompt.
      prompts: that there are.
      mesh: over whose batch axes rows lie; None for a single device.
    """
    size = rows_at_once(min(rows, prompts * n), mesh)
    return size, min(rows_at_once(min(-(-size // n), prompts), mesh), size)


def slots(longest: int) -> int:
    """Places of a row for completions that have, with their prompts, at most so many tokens."""
    return bucket(longest, least=32)


def places_of(prompt: int) -> int:
    """Places that prompts are read in, the longest of so many tokens: all but the last."""
    return bucket(prompt - 1, least=16)
