"""Why rewards fail, told as a run goes: each reason once."""

from collections import Counter

LINES = 20
"""Lines in a run: reasons may quote what a model wrote, and then no two are alike."""
_SHOWN = 3


class Reasons:
    """Remembers what was told."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()
        self._lines = 0

    def tell(self, failed: Counter[str], count: int, of: str) -> str | None:
        """A line for the user where a reason is new; None where all were told, or `LINES` were.

        Args:
          failed: reasons, with the number of completions.
          count: completions that were judged.
          of: what they are, in the plural; a reason is told once for each such word.
        """
        new = {(of, reason) for reason in failed} - self._told
        if not new or self._lines == LINES:
            return None
        self._told |= new
        self._lines += 1
        often = ", ".join(f"{times} x {reason}" for reason, times in failed.most_common(_SHOWN))
        more = "each reason is told once" if self._lines < LINES else "no further reason is told"
        return f"rewards failed on some of {count} {of}: {often} ({more})"
