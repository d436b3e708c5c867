"""Prompts in, one model's answers out: what another is fine-tuned on."""

import os
from collections.abc import Sequence
from pathlib import Path

from ptjax.data.config import SourceConfig
from ptjax.preferences.answering import Answering, Row, write_rows
from ptjax.preferences.journal import check
from ptjax.preferences.prompts import read_prompts
from ptjax.preferences.settings import AnswerSettings
from ptjax.preferences.totals import Totals
from ptjax.rewards.base import ready, rewards
from ptjax.workdir import load


def make_answers(
    model: str,
    prompts: str | SourceConfig,
    out: str | os.PathLike[str],
    settings: AnswerSettings,
    *,
    quiet: bool = False,
) -> Totals:
    """Writes a model's answers as JSON lines; the same call goes on where a killed one stopped.

    Of a teacher's, supervised fine-tuning is distillation at the level of sequences (Kim and Rush,
    1606.07947, section 3.2), with the best by reward in the place of the likeliest.

    Args:
      model: whatever `ptjax.load` takes.
      prompts: whatever the data pipeline reads: rows with `prompt`, or with a whole conversation
        whose last answer is left off.
      out: the file to make, of rows `prompt`, `completion` and, where there are rewards, `score`.
      settings: how.
      quiet: show no progress.

    Returns:
      What became of the prompts.

    Raises:
      UserError: anything wrong with what was given; no answer at all.
    """
    check(Path(out))
    judges = rewards(settings.rewards)
    for judge in judges:
        ready(judge)
    source = prompts if isinstance(prompts, SourceConfig) else SourceConfig(prompts)
    asked = read_prompts(source)
    answering = Answering(load(model, head="lm"), asked, settings, judges)

    def rows(numbers: Sequence[int], totals: Totals) -> list[Row]:
        answers = answering.answers(numbers, totals)
        said = [(i, text) for i in answers for text in answers[i]]
        if not judges:
            for _ in said:
                totals.add(None)
            return [answering.row(i, {"completion": text}) for i, text in said]
        scores = iter(answering.scores(said, totals))
        kept = []
        for i, texts in answers.items():
            scored = [(next(scores), text) for text in texts]
            best = best_of(scored, keep=settings.keep or 1, least=settings.least)
            totals.skip("no answer with a score, or none that is good enough", not best)
            for value, text in best:
                totals.add({"kept": value})
                row = answering.row(i, {"completion": text})
                kept.append(row | {"score": round(value, 6)})
        return kept

    _, totals = write_rows(
        answering, out, settings, rows, source=source, what="answers", quiet=quiet
    )
    return totals


def best_of(
    scored: Sequence[tuple[float, str]], *, keep: int, least: float | None
) -> list[tuple[float, str]]:
    """The best answers, best first; of equal ones those drawn first.

    Args:
      scored: score and text of each; NaN: it has none, and is not taken.
      keep: at most so many.
      least: score that one needs; None: any.
    """
    there = [one for one in scored if one[0] == one[0] and (least is None or one[0] >= least)]
    return sorted(there, key=lambda one: -one[0])[:keep]
