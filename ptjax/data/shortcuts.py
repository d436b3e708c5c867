"""What a judge could learn from the data without reading the answers: length, and single words.

A run on pairs of which the longer is nearly always the chosen one learns length first, and its
accuracy says little until it is compared with that of length alone.
"""

import collections
import dataclasses
import math
import re
from typing import Any

import numpy as np

from ptjax.data.examples import Examples
from ptjax.data.kinds import LABELLED, Kind

_READ = 2000
"""Examples whose words are counted."""
_SHOWN = 5
_Z = 4.0
"""How surprising a word's side must be: with thousands of words, chance gives fewer than one."""
_ALONE = 25
"""Pairs that tell a word which stands in none on the other side, however long the sides are."""
_WORD = re.compile(r"[\w']+|[^\w\s]+")


@dataclasses.dataclass(frozen=True)
class Word:
    """A word or mark that stands on one side far more often than answers' lengths explain."""

    word: str
    counts: tuple[int, int]
    """Answers with it on the first and on the second side; of a pair that has it on both, none."""


@dataclasses.dataclass(frozen=True)
class Shortcuts:
    """Two sides of the data, and what tells them apart without reading."""

    sides: tuple[str, str]
    examples: tuple[int, int]
    """Answers on each side."""
    tokens: tuple[float, float]
    """Mean tokens of an answer on each side."""
    longer: tuple[float, float, float] | None
    """Of pairs: the share whose longer side is the better one, with its 95 % interval."""
    words: list[Word]
    """Most surprising first."""

    def lines(self) -> list[str]:
        """For a person: lengths, and words where there are any."""
        first, second = self.sides
        text = f"{first} {self.tokens[0]:.0f} tokens, {second} {self.tokens[1]:.0f} on average"
        if self.longer is None:
            count = sum(self.examples)
            share = self.examples[0] / max(1, count)
            made = [f"{share:.1%} of {count} are {first}; {text}"]
        else:
            share, low, high = self.longer
            made = [f"{text}; the longer is {first} in {share:.1%} ({low:.1%} to {high:.1%})"]
        for n, side in enumerate(self.sides):
            mine = [word for word in self.words if (word.counts[0] < word.counts[1]) == bool(n)]
            told = (f"{w.word!r} ({w.counts[n]} against {w.counts[1 - n]})" for w in mine[:_SHOWN])
            if mine:
                made.append(f"more often {side}: {', '.join(told)}")
        return made


def shortcuts(examples: Examples, kind: Kind, tokenizer: Any) -> Shortcuts | None:
    """Looks for shortcuts in what is trained on; None for kinds that judge no whole answers.

    Args:
      examples: of pairs, rankings (best against worst), labels or ratings (above the median).
      kind: of these examples.
      tokenizer: turns answers back into words.

    """
    if "scores" not in kind.columns:
        return None
    lengths = np.where(examples.lengths > 0, examples.lengths - examples.prompts[:, None], 0)
    paired = examples.lengths.shape[1] > 1
    if paired:
        rows, there = np.arange(len(examples)), examples.lengths > 0
        if kind.name == "pairs":
            best, worst, names = np.zeros_like(rows), np.ones_like(rows), ("chosen", "rejected")
        else:
            best = np.where(there, examples.scores, -np.inf).argmax(1)
            worst = np.where(there, examples.scores, np.inf).argmin(1)
            names = ("best", "worst")
        sides = [(rows, best), (rows, worst)]
    else:
        scores = examples.scores[:, 0]
        binary = bool(np.isin(scores, (0, 1)).all())
        above = scores > (0.5 if binary else np.median(scores))
        groups = (np.flatnonzero(above), np.flatnonzero(~above))
        sides = [(rows, np.zeros(len(rows), np.int64)) for rows in groups]
        desirable = ("desirable", "undesirable") if kind.name in LABELLED else ("right", "wrong")
        names = desirable if binary else ("above the median", "below it")
    one, other = (lengths[side] for side in sides)
    return Shortcuts(
        names,
        (len(one), len(other)),
        (float(one.mean()) if len(one) else 0.0, float(other.mean()) if len(other) else 0.0),
        wilson(int((one > other).sum()), int((one != other).sum())) if paired else None,
        _words(*(_read(examples, *side, tokenizer) for side in sides), paired=paired),
    )


def wilson(hits: int, count: int) -> tuple[float, float, float]:
    """A share and its 95 % interval (Wilson 1927, equation for two-sided limits)."""
    if not count:
        return 0.5, 0.0, 1.0
    z = 1.96
    share = hits / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    width = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    width /= 1 + z**2 / count
    return share, middle - width, middle + width


def _read(
    examples: Examples, rows: np.ndarray, which: np.ndarray, tokenizer: Any
) -> list[set[str]]:
    """The words of some of these answers, lower case, evenly from all of them."""
    if not len(rows):
        return []
    some = np.unique(np.linspace(0, len(rows) - 1, min(_READ, len(rows))).astype(np.int64))
    answers = [
        examples.tokens(int(row), int(n))[0][examples.prompts[row] :]
        for row, n in zip(rows[some], which[some], strict=True)
    ]
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    return [set(_WORD.findall(text.lower())) for text in texts]


def _words(one: list[set[str]], other: list[set[str]], *, paired: bool) -> list[Word]:
    """Words whose side is more than `_Z` standard deviations from that of words on the whole.

    A word is expected on the first side as often as all words together are, which takes account of
    longer answers and of unequal numbers of them. Sides of pairs that differ in few words owe that
    share to just those, so a word that stands on one side alone, in `_ALONE` pairs, is found by the
    sign test, against a fair coin.
    """
    if paired:
        pairs = list(zip(one, other, strict=True))
        one, other = [a - b for a, b in pairs], [b - a for a, b in pairs]
    counts = [
        collections.Counter(word for words in side for word in words) for side in (one, other)
    ]
    totals = [sum(count.values()) for count in counts]
    if not all(totals) and not paired:
        return []
    share = totals[0] / max(1, sum(totals))
    found = []
    for word in counts[0].keys() | counts[1].keys():
        n = counts[0][word] + counts[1][word]
        z = abs(counts[0][word] - n * share) / math.sqrt(n * share * (1 - share) or 1)
        if paired and n >= _ALONE and counts[0][word] in (0, n):
            z = max(z, math.sqrt(n))
        if z >= _Z:
            found.append((-z, word))
    return [Word(word, (counts[0][word], counts[1][word])) for _, word in sorted(found)]
