"""Rewards that count words and patterns."""

import re
from collections.abc import Sequence
from typing import Any

from ptjax.errors import UserError

_WORD = re.compile(r"\w+(?:['’-]\w+)*")


def length(prompts: Sequence[str], completions: Sequence[str], *, target: int) -> list[float]:
    """min(words, target) / target: longer is better up to the target, and no better beyond it.

    Args:
      prompts: not read.
      completions: texts; words are what whitespace separates.
      target: words, at least 1.

    Returns:
      From 0 to 1.

    Raises:
      UserError: the target is no such number.
    """
    if isinstance(target, bool) or not isinstance(target, int) or target < 1:
        raise UserError(f"reward length: target = {target!r}; it must be a whole number above 0")
    return [min(len(text.split()), target) / target for text in completions]


def contains(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    words: Sequence[str] | str = (),
    without: Sequence[str] | str = (),
    ignore_case: bool = True,
) -> list[float]:
    """The share of the given words that are there, or absent where they should be.

    Args:
      prompts: not read.
      completions: texts.
      words: whole words or phrases that should be there ("Pip" is not in "Pipes").
      without: those that should not.
      ignore_case: whether "pip" is "Pip".

    Returns:
      From 0 to 1.

    Raises:
      UserError: no words are given, or what is given is not text.
    """
    wanted = [rf"(?<!\w){re.escape(word)}(?!\w)" for word in _texts(words, "contains", "words")]
    unwanted = [
        rf"(?<!\w){re.escape(word)}(?!\w)" for word in _texts(without, "contains", "without")
    ]
    return _shares(completions, "contains", wanted, unwanted, ignore_case)


def regex(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    patterns: Sequence[str] | str = (),
    without: Sequence[str] | str = (),
    ignore_case: bool = False,
) -> list[float]:
    r"""The share of the given patterns that are found, or absent where they should be.

    Args:
      prompts: not read.
      completions: texts; a pattern may match anywhere, `\A` and `\Z` are the ends of the text.
      patterns: regular expressions that should match.
      without: those that should not.
      ignore_case: whether letters match in either case.

    Returns:
      From 0 to 1.

    Raises:
      UserError: no patterns are given, or one that is not a regular expression.
    """
    wanted, unwanted = _texts(patterns, "regex", "patterns"), _texts(without, "regex", "without")
    return _shares(completions, "regex", wanted, unwanted, ignore_case)


def repetition(prompts: Sequence[str], completions: Sequence[str], *, n: int = 3) -> list[float]:
    """-(1 - different n-grams / n-grams) of words: 0 where none comes twice, near -1 in a loop.

    As the code of 2502.03373 computes its repetition penalty, of weight 1.

    Args:
      prompts: not read.
      completions: texts; case and punctuation do not count.
      n: words of an n-gram, at least 1; a text of fewer words has 0.

    Returns:
      From -1 to 0.

    Raises:
      UserError: n is no such number.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise UserError(f"reward repetition: n = {n!r}; it must be a whole number above 0")
    found = []
    for text in completions:
        words = _WORD.findall(text.lower())
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        found.append(len(set(grams)) / len(grams) - 1 if grams else 0.0)
    return found


def _shares(
    completions: Sequence[str], name: str, wanted: list[str], unwanted: list[str], ignore_case: bool
) -> list[float]:
    """Of each text, the share of patterns that match or, unwanted, do not."""
    flags = re.IGNORECASE if ignore_case else 0
    checks = [(pattern, True) for pattern in wanted] + [(pattern, False) for pattern in unwanted]
    if not checks:
        raise UserError(f"reward {name}: nothing to look for; give patterns, or those in 'without'")
    compiled = []
    for pattern, present in checks:
        try:
            compiled.append((re.compile(pattern, flags), present))
        except re.error as error:
            raise UserError(f"reward {name}: {pattern!r} is not a regex: {error}") from error
    return [
        sum((pattern.search(text) is not None) == present for pattern, present in compiled)
        / len(compiled)
        for text in completions
    ]


def _texts(given: Any, name: str, setting: str) -> list[str]:
    """A text stands for a list of one."""
    given = [given] if isinstance(given, str) else list(given)
    for one in given:
        if not isinstance(one, str) or not one:
            raise UserError(f"reward {name}: {setting} holds {one!r}; texts are expected")
    return given
