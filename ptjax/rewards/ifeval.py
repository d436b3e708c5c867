"""How many of a row's instructions a completion follows."""

from collections.abc import Mapping, Sequence
from typing import Any

from ptjax.errors import did_you_mean
from ptjax.rewards.base import Failed, needs
from ptjax.rewards.instructions import INSTRUCTIONS, follows


def ifeval(
    prompts: Sequence[str],
    completions: Sequence[str],
    instruction_id_list: Sequence[Sequence[str] | None],
    kwargs: Sequence[Sequence[Mapping[str, Any] | None] | None] | None = None,
    *,
    strict: bool = True,
    every: bool = False,
) -> list[float | None | Exception]:
    """The share of a row's verifiable instructions that are followed (IFEval, 2311.07911).

    Args:
      prompts: not read.
      completions: texts.
      instruction_id_list: of `ptjax.rewards.instructions.INSTRUCTIONS`.
      kwargs: each instruction's arguments; those that are None do not count.
      strict: the text as it is; else an instruction is also followed where the text does without
        its first line, its last line, both, or its asterisks (the paper's "loose").
      every: 1 where all are followed and else 0, in place of the share.

    Returns:
      From 0 to 1; None for a row without instructions; a failure where the row's are not known.

    Raises:
      UserError: an instruction needs a package that is not installed.
    """
    found: list[float | None | Exception] = []
    for i, text in enumerate(completions):
        names = instruction_id_list[i] or []
        arguments = (kwargs[i] if kwargs else None) or [None] * len(names)
        try:
            kept = [_followed(text, *one, strict) for one in zip(names, arguments, strict=True)]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            found.append(_reason(names, error))
            continue
        value = float(all(kept)) if every else sum(kept) / max(len(kept), 1)
        found.append(value if kept else None)
    return found


def ready(**_: Any) -> None:
    """Refuses before a run what it could not be judged with: any row may ask for a language."""
    needs("py3langid", "py3langid", "reward ifeval")


def _followed(text: str, name: str, arguments: Mapping[str, Any] | None, strict: bool) -> bool:
    given = {key: value for key, value in (arguments or {}).items() if value is not None}
    return any(follows(one, name, given) for one in ([text] if strict else _variants(text)))


def _variants(text: str) -> list[str]:
    lines = text.split("\n")
    cut = [lines, lines[1:], lines[:-1], lines[1:-1]]
    texts = ["\n".join(some).strip() for some in cut]
    return [text, *texts[1:], *(one.replace("*", "") for one in [text, *texts[1:]])]


def _reason(names: Sequence[str], error: Exception) -> Failed:
    unknown = [name for name in names if name not in INSTRUCTIONS]
    if unknown:
        return Failed(f"unknown instruction {unknown[0]!r}{did_you_mean(unknown[0], INSTRUCTIONS)}")
    return Failed(f"instructions {[*names]} with other arguments: {error}")
