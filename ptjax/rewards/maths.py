"""Whether the final answer is right: exact where that is enough, else by math-verify."""

from collections.abc import Sequence
from typing import Any

from ptjax.errors import UserError, did_you_mean
from ptjax.rewards.answers import FORMS, answer_of, same
from ptjax.rewards.base import needs
from ptjax.rewards.worker import pool


def math(
    prompts: Sequence[str],
    completions: Sequence[str],
    answer: Sequence[Any] | None = None,
    solution: Sequence[Any] | None = None,
    ground_truth: Sequence[Any] | None = None,
    *,
    forms: Sequence[str] = ("boxed", "hash", "number"),
    verify: bool = True,
    seconds: float = 5.0,
    workers: int = 1,
) -> list[float | None | Exception]:
    r"""1 where the completion's final answer equals the row's, else 0.

    Equal texts and equal numbers are told at once; the rest is parsed and compared by math-verify
    in a process that is killed when it takes too long.

    Args:
      prompts: not read.
      completions: texts; the answer is the last of the first form that is found.
      answer: what is right: a number, an answer (`\frac{1}{2}`), or a solution that ends in
        `\boxed{}` or `####`; a list: any of them is right.
      solution: taken where the row has no `answer`.
      ground_truth: taken where it has neither.
      forms: of `ptjax.rewards.answers.FORMS`, in order; a completion with none of them is wrong.
      verify: whether math-verify is asked; without it what is not plainly equal is wrong.
      seconds: that math-verify may take for one completion.
      workers: processes that it runs in.

    Returns:
      1 or 0; None for a row without an answer, or with one that math-verify cannot read; a failure
      where it took too long or died.

    Raises:
      UserError: no such column or form; math-verify is not installed.
    """
    if isinstance(forms, str) or not forms:
        raise UserError(f"reward math: forms = {forms!r}; a list is expected, of {[*FORMS]}")
    for form in forms:
        if form not in FORMS:
            raise UserError(f"reward math: form {form!r}{did_you_mean(form, FORMS)}")
    given = [column for column in (answer, solution, ground_truth) if column is not None]
    if not given:
        raise UserError("reward math: no column 'answer', 'solution' or 'ground_truth'")
    found: list[float | None | Exception] = []
    asked: list[tuple[int, list[str], str]] = []
    for i, text in enumerate(completions):
        right = next((column[i] for column in given if column[i] is not None), None)
        golds = [_gold(one) for one in (right if isinstance(right, list) else [right])]
        golds = [gold for gold in golds if gold]
        said = answer_of(text, forms)
        verdicts = [same(gold, said[1]) for gold in golds] if said else [False] * len(golds)
        found.append(float(True in verdicts) if golds else None)
        if said and None in verdicts and True not in verdicts:
            asked.append((i, golds, said[1]))
    if verify and asked:
        ready()
        judge = pool("ptjax.rewards.maths_worker.verdict", seconds, workers)
        for (i, *_), value in zip(asked, judge.map([one[1:] for one in asked]), strict=True):
            found[i] = value
    return found


def ready(*, verify: bool = True, **_: Any) -> None:
    """Refuses before a run what it could not be judged with."""
    if verify:
        needs("math-verify", "math_verify", "reward math")


def _gold(given: Any) -> str:
    """The row's right answer as text."""
    if given is None:
        return ""
    text = str(given).strip()
    found = answer_of(text, ("boxed", "hash"))
    return found[1] if found else text
