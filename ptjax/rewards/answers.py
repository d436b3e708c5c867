r"""The final answer of a text, and whether two answers are the same without a parser.

| form | what is taken |
|---|---|
| `boxed` | the argument of the last `\boxed{}` |
| `hash` | what follows the last `####` on its line |
| `tag` | what stands in the last `<answer></answer>` |
| `latex` | the last `$...$`, `\(...\)` or `\[...\]` |
| `number` | the last plain number |
| `text` | the whole text |
"""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)|\\boxed\s+([^\s$\\{}]+)")
_HASH = re.compile(r"####[ \t]*(\S[^\n]*)")
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_LATEX = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(rf"(?<![\w.])-?(?:{_PLAIN})(?:/\d+)?(?!\w)")
_WHOLE_NUMBER = re.compile(rf"[-+]?(?:{_PLAIN})")
_FRACTION = re.compile(r"([-+]?)(?:\\frac(?:\{(-?\d+)\}\{(-?\d+)\}|(\d)(\d))|(\d+)/(\d+))")
_LONGEST = 1000
"""Characters of a number that is read; Python takes long ones in quadratic time."""

_DROPPED = (
    (re.compile(r"\\(?:left|right|displaystyle|limits)(?![a-zA-Z])|\\[!,;: ]|~"), ""),
    (re.compile(r"\\[dt]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\[$]"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\^(?:\\circ|\{\\circ\})"), ""),
    (re.compile(r"\s+"), ""),
)


def boxed(text: str) -> str | None:
    r"""The argument of the last `\boxed{}` (or `\fbox{}`); None where it is not closed."""
    every = list(_BOXED.finditer(text))
    if not every:
        return None
    found = every[-1]
    if found.group(1) is not None:
        return found.group(1)
    depth = 0
    for i in range(found.end(), len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0) if text[i - 1] != "\\" else 0
        if depth == 0:
            return text[found.end() + 1 : i].strip()
    return None


def _last(pattern: re.Pattern[str]) -> Callable[[str], str | None]:
    def extract(text: str) -> str | None:
        every = list(pattern.finditer(text))
        if not every:
            return None
        groups = [group for group in every[-1].groups() if group is not None]
        return (groups[0] if groups else every[-1].group()).strip()

    return extract


FORMS: dict[str, Callable[[str], str | None]] = {
    "boxed": boxed,
    "hash": _last(_HASH),
    "tag": _last(_TAG),
    "latex": _last(_LATEX),
    "number": _last(_NUMBER),
    "text": str.strip,
}
"""What an answer may look like, and how it is taken from a text."""


def answer_of(text: str, forms: Sequence[str]) -> tuple[str, str] | None:
    """The form and the answer: of the first form that the text has, its last."""
    for form in forms:
        found = FORMS[form](text)
        if found:
            return form, found
    return None


def same(gold: str, answer: str) -> bool | None:
    """Whether two answers are equal as texts or as numbers; None: it takes a parser to tell.

    Args:
      gold: what is right.
      answer: what is said.
    """
    gold, answer = plain(gold), plain(answer)
    if gold == answer:
        return True
    a, b = number(gold), number(answer)
    if a is None or b is None:
        return None
    # A rounded decimal against a fraction is left to the parser.
    return True if a == b else None if abs(a - b) <= Fraction(1, 100) * abs(a) else False


def plain(text: str) -> str:
    r"""Without what changes looks alone: `$`, spaces, `\left`, `\text`, a last dot."""
    text = text.strip().removesuffix(".")
    for start, end in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if text.startswith(start) and text.endswith(end) and len(text) > len(start) + len(end):
            text = text[len(start) : -len(end)]
    for pattern, instead in _DROPPED:
        text = pattern.sub(instead, text)
    return text.removeprefix("$").removesuffix(".")


def number(text: str) -> Fraction | None:
    r"""The value of `-1,234.5`, `3/4`, `\frac{3}{4}`; None for all else."""
    if len(text) > _LONGEST:
        return None
    if _WHOLE_NUMBER.fullmatch(text):
        return Fraction(text.replace(",", ""))
    if found := _FRACTION.fullmatch(text):
        above, below = (int(part) for part in found.groups()[1:] if part is not None)
        sign = -1 if found.group(1) == "-" else 1
        return Fraction(sign * above, below) if below else None
    return None
