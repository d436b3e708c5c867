"""Which language a text is in: by its script with no model at all, or by a small detector."""

import functools
import unicodedata
from collections.abc import Sequence
from typing import Any

from ptjax.errors import UserError, did_you_mean
from ptjax.rewards.base import Failed, needs

_OTHERS = {
    "ARABIC": "ar fa ur ps ug",
    "ARMENIAN": "hy",
    "BENGALI": "bn as",
    "CYRILLIC": "ru uk bg sr mk be kk ky mn",
    "DEVANAGARI": "hi mr ne",
    "ETHIOPIC": "am",
    "GEORGIAN": "ka",
    "GREEK": "el",
    "GUJARATI": "gu",
    "GURMUKHI": "pa",
    "HANGUL": "ko",
    "HEBREW": "he",
    "CJK": "zh ja",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "KANNADA": "kn",
    "KHMER": "km",
    "LAO": "lo",
    "MALAYALAM": "ml",
    "ORIYA": "or",
    "SINHALA": "si",
    "TAMIL": "ta",
    "TELUGU": "te",
    "THAI": "th",
}
_LATIN = (
    "en de fr es it pt nl sv no nb nn da fi is pl cs sk hu ro hr sl et lv lt sq tr az vi id ms tl "
    "sw af ca eu gl cy ga mt eo la"
)
SCRIPTS: dict[str, frozenset[str]] = {
    code: frozenset(script for script, codes in _OTHERS.items() if code in codes.split())
    for code in " ".join(_OTHERS.values()).split()
} | dict.fromkeys(_LATIN.split(), frozenset({"LATIN"}))
"""The scripts of a language, by its ISO 639-1 code; named as Unicode names their letters."""

BY = ("script", "detector")


def language(
    prompts: Sequence[str],
    completions: Sequence[str],
    language: Sequence[str | None] | None = None,
    *,
    code: str = "en",
    by: str = "script",
) -> list[float | None | Exception]:
    """Whether a completion is in the right language (2501.12948, section 2.3.2: "consistency").

    Args:
      prompts: not read.
      completions: texts.
      language: the row's ISO 639-1 code, in place of `code`.
      code: of all completions.
      by: "script", the share of letters in the language's scripts, which tells Chinese from English
        and not French from English; "detector", 1 where py3langid names that language, else 0.

    Returns:
      From 0 to 1; None for a completion without letters; a failure for a row of an unknown code.

    Raises:
      UserError: an unknown code or way; py3langid is not installed.
    """
    known = _known(code, by)
    found: list[float | None | Exception] = []
    for i, text in enumerate(completions):
        wanted = (language[i] if language else None) or code
        if wanted not in known:
            found.append(Failed(f"unknown language {wanted!r}{did_you_mean(str(wanted), known)}"))
        elif not any(map(str.isalpha, text)):
            found.append(None)
        elif by == "script":
            found.append(share(text, wanted))
        else:
            found.append(float(detect(text, "reward language") == wanted))
    return found


def ready(*, code: str = "en", by: str = "script", **_: Any) -> None:
    """Refuses before a run what it could not be judged with."""
    _known(code, by)


def _known(code: str, by: str) -> list[str]:
    """The codes that a way of telling knows; refuses a setting that cannot be."""
    if by not in BY:
        raise UserError(f"reward language: by = {by!r}{did_you_mean(by, BY)}")
    if by == "detector":
        needs("py3langid", "py3langid", "reward language")
    known = [*SCRIPTS] if by == "script" else _detected()
    if code not in known:
        raise UserError(f"reward language: unknown code {code!r}{did_you_mean(code, known)}")
    return known


def share(text: str, code: str) -> float:
    """The share of a text's letters that are of a language's scripts; 0 where it has no letters.

    Raises:
      UserError: an unknown code.
    """
    if code not in SCRIPTS:
        raise UserError(f"reward language: no script of {code!r}{did_you_mean(code, SCRIPTS)}")
    letters = [_script(letter) for letter in text if letter.isalpha()]
    return sum(one in SCRIPTS[code] for one in letters) / len(letters) if letters else 0.0


def detect(text: str, where: str) -> str:
    """The ISO 639-1 code of the likeliest language.

    Args:
      text: some sentences; of a few words it is a guess.
      where: what asks, as messages call it.

    Raises:
      UserError: py3langid is not installed.
    """
    needs("py3langid", "py3langid", where)
    return _detector().classify(text)[0]


@functools.lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "").split(" ", 1)[0]


@functools.cache
def _detected() -> list[str]:
    """The codes that the detector may name: it ranks them all."""
    return [code for code, _ in _detector().rank("")]


@functools.cache
def _detector() -> Any:
    import py3langid

    return py3langid
