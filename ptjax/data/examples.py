"""Examples of N sequences each, as views into the stores of their sources."""

import collections
import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from ptjax.data.columns import left_out
from ptjax.data.encode import Encodings
from ptjax.data.judged import judged
from ptjax.data.kinds import Kind
from ptjax.data.pieces import Pieces
from ptjax.data.rows import Row


@dataclasses.dataclass(frozen=True)
class Examples:
    """What is trained on, or held out."""

    encodings: list[Encodings]
    source: Int[np.ndarray, " E"]
    """Index into `encodings`."""
    row: Int[np.ndarray, " E"]
    """Row of the source."""
    pieces: Pieces
    """Where in the store the sequences are; a sequence that an example lacks has length 0."""
    trained: Int[np.ndarray, "E N"]
    """Trained tokens of each sequence."""
    prompts: Int[np.ndarray, " E"]
    """Tokens of the prompt that the sequences share."""
    scores: Float[np.ndarray, "E N"]
    """The data's judgement of each sequence."""
    margin: Float[np.ndarray, " E"]
    """By how much a pair's chosen side is better; 0 where the data do not say."""
    prompts_once: bool = False
    """Whether a packed row holds an example's prompt once, before all of its completions."""
    mismatched: Pieces | None = None
    """Of kind "mismatched": each prompt with the completion of another example."""

    def __len__(self) -> int:
        return len(self.source)

    @property
    def lengths(self) -> Int[np.ndarray, "E N"]:
        """Tokens of each sequence."""
        return self.pieces.lengths

    @property
    def longest(self) -> Int[np.ndarray, " E"]:
        """Tokens of an example's longest sequence, a mismatched one included."""
        longest = self.lengths.max(1)
        if self.mismatched is not None:
            longest = np.maximum(longest, self.mismatched.lengths.max(1))
        return longest

    @property
    def shared(self) -> Int[np.ndarray, " E"]:
        """Tokens of the prompt that stands once in a packed row; 0 where each has its own."""
        return self.prompts if self.prompts_once else np.zeros_like(self.prompts)

    def sizes(self) -> Int[np.ndarray, " E"]:
        """Tokens of a packed row that an example takes: all of its sequences side by side."""
        if self.mismatched is not None:
            return self.longest
        without = left_out(self.shared, self.lengths > 0)
        return np.maximum(self.lengths - without, 0).sum(1)

    def has_twins(self, looked_at: int = 1000) -> bool:
        """Whether one of the first examples begins with the same sequence twice."""
        lengths = self.lengths[:looked_at]
        if lengths.shape[1] < 2:
            return False
        alike = np.flatnonzero((lengths[:, 0] == lengths[:, 1]) & (lengths[:, 0] > 0)).tolist()
        return any(np.array_equal(self.tokens(i, 0)[0], self.tokens(i, 1)[0]) for i in alike)

    def identity(self) -> bytes:
        """A digest of all tokens and masks, in the examples' order."""
        digest = hashlib.sha256()
        for array in (self.source, *self.pieces, *(self.mismatched or ())):
            digest.update(np.ascontiguousarray(array).tobytes())
        for one in self.encodings:
            for name in ("tokens", "mask", "labels"):
                digest.update(repr(one.sequences.files[name]).encode())
        return digest.digest()

    def where(self, example: int) -> str:
        """File and line an example came from."""
        encodings = self.encodings[self.source[example]]
        return encodings.rows.where(int(self.row[example]))

    def content(self, example: int) -> Row:
        """The row an example came from, read again."""
        rows = self.encodings[self.source[example]].rows
        (row,) = rows.read(int(self.row[example]), int(self.row[example]) + 1)
        assert isinstance(row, dict)
        return row

    def is_text(self, example: int, kind: Kind) -> bool:
        """Whether a judged row's prompt is text, or missing: no chat template is put around it."""
        source = self.encodings[self.source[example]].source
        made = judged(self.content(example), kind, form=source.format, columns=dict(source.columns))
        return not isinstance(made[0].sequences[0].prompt, list)

    def take(self, chosen: np.ndarray) -> "Examples":
        """Some of the examples."""
        names = ("source", "row", "trained", "prompts", "scores", "margin")
        parts = {name: getattr(self, name)[chosen] for name in names}
        other = None if self.mismatched is None else self.mismatched.take(chosen)
        return dataclasses.replace(self, pieces=self.pieces.take(chosen), mismatched=other, **parts)

    def widened(self, width: int) -> "Examples":
        """The same with empty sequences appended to every example, up to N = width."""
        extra = ((0, 0), (0, width - self.lengths.shape[1]))
        return dataclasses.replace(
            self,
            pieces=self.pieces.widened(width),
            trained=np.pad(self.trained, extra),
            scores=np.pad(self.scores, extra),
        )

    def tokens(self, example: int, n: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and mask of one sequence."""
        return self._read(self.pieces, example, n)

    def labels(self, example: int) -> np.ndarray:
        """Stepwise: the values to predict, one a step."""
        flat = self.encodings[self.source[example]].sequences.flat
        places = self.pieces.starts[example, 0] + np.arange(self.lengths[example, 0])
        return flat.read("labels", places)[flat.read("mask", places)]

    def mismatched_tokens(self, example: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and mask of its prompt with the completion of another example."""
        assert self.mismatched is not None
        return self._read(self.mismatched, example, 0)

    def _read(self, pieces: Pieces, example: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        flat = self.encodings[self.source[example]].sequences.flat
        one = pieces.take(np.array([example]))
        places = one.positions(int(one.lengths[0, n]))[0, n]
        mask = flat.read("mask", places)
        mask[:1] = False
        return flat.read("tokens", places), mask


@dataclasses.dataclass
class SourceReport:
    """What became of one source's rows."""

    path: str
    rows: int = 0
    examples: int = 0
    tokens: int = 0
    trained: int = 0
    truncated: int = 0
    """Sequences that were cut."""
    truncated_tokens: int = 0
    """Tokens that were cut off."""
    drops: dict[str, int] = dataclasses.field(default_factory=dict)
    """Reason -> rows, examples or sequences left out."""

    def drop(self, reason: str, count: int) -> None:
        """Counts what was left out."""
        if count:
            self.drops[reason] = self.drops.get(reason, 0) + count


def joined(parts: Sequence[Examples]) -> Examples:
    """The examples of several sources, one after the other."""
    width = max(part.lengths.shape[1] for part in parts)
    parts = [part.widened(width) for part in parts]

    def together(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    return Examples(
        parts[0].encodings,
        source=together("source"),
        row=together("row"),
        pieces=Pieces(*(np.concatenate(v) for v in zip(*(p.pieces for p in parts), strict=True))),
        trained=together("trained"),
        prompts=together("prompts"),
        scores=together("scores"),
        margin=together("margin"),
    )


def total_drops(reports: Sequence[SourceReport]) -> dict[str, int]:
    """What was left out of all sources, by reason."""
    total: collections.Counter[str] = collections.Counter()
    for report in reports:
        total.update(report.drops)
    return dict(total)
