"""Prompts in, pairs out: the model answers, rewards or an edit judge."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ptjax.data.config import SourceConfig
from ptjax.data.pipeline import build
from ptjax.errors import UserError
from ptjax.models.load import Bundle
from ptjax.preferences.answering import Answering, Row, write_rows
from ptjax.preferences.journal import check
from ptjax.preferences.prompts import read_prompts
from ptjax.preferences.settings import Judges, Settings
from ptjax.preferences.totals import Totals
from ptjax.rewards.base import accepted
from ptjax.rewards.choose import best_against, enough
from ptjax.workdir import load


class Made(NamedTuple):
    """What came of a run."""

    totals: Totals
    shortcuts: list[str]
    """What tells the sides apart without reading them: see `ptjax.data.shortcuts`."""

    def lines(self) -> list[str]:
        """The summary, for people."""
        return [*self.totals.lines("pairs"), *(f"sides       {line}" for line in self.shortcuts)]


class Pair(NamedTuple):
    """Two answers to a prompt."""

    prompt: int
    """Of the batch."""
    chosen: str
    rejected: str
    scores: tuple[float, float] | None = None


def make_pairs(
    model: str,
    prompts: str | SourceConfig,
    out: str | os.PathLike[str],
    settings: Settings,
    *,
    quiet: bool = False,
) -> Made:
    """Makes pairs and writes them as JSON lines; the same call goes on where a killed one stopped.

    Args:
      model: whatever `ptjax.load` takes.
      prompts: whatever the data pipeline reads: rows with `prompt`, or with a whole conversation
        whose last answer is left off.
      out: the file to make, of rows `prompt`, `chosen`, `rejected` and, where there are rewards,
        `score_chosen`, `score_rejected`.
      settings: how.
      quiet: show no progress.

    Returns:
      What became of the prompts, and what the pairs can be told apart by.

    Raises:
      UserError: anything wrong with what was given; no pair at all.
    """
    check(Path(out))
    judges = Judges.of(settings)
    source = prompts if isinstance(prompts, SourceConfig) else SourceConfig(prompts)
    asked = read_prompts(source)
    if settings.chosen == "given" and not any(prompt.given for prompt in asked):
        raise UserError(f"{source.path}: no row has an answer of its own (a completion)")
    bundle = load(model, head="lm")
    maker = _Maker(Answering(bundle, asked, settings, judges.rewards), settings, judges)
    path, totals = write_rows(
        maker.answering, out, settings, maker.batch, source=source, what="pairs", quiet=quiet
    )
    return Made(totals, _shortcuts(path, bundle))


class _Maker:
    """Makes the pairs of one batch after the other; a batch depends on nothing before it."""

    def __init__(self, answering: Answering, settings: Settings, judges: Judges):
        self.answering = answering
        self._settings = settings
        self._judges = judges

    def batch(self, numbers: Sequence[int], totals: Totals) -> list[Row]:
        """The rows of these prompts, added to the totals."""
        answers = self.answering.answers(numbers, totals)
        make = {"best": self._best, "edited": self._edited, "given": self._given}
        pairs = list(make[self._settings.chosen](answers, totals))
        for pair in pairs:
            sides: tuple[str, ...] = ("chosen", "rejected")
            totals.add(pair.scores and dict(zip(sides, pair.scores, strict=True)))
        return [self._row(pair) for pair in pairs]

    def _best(self, answers: dict[int, list[str]], totals: Totals) -> Iterator[Pair]:
        settings = self._settings
        scores = iter(
            self.answering.scores([(i, text) for i in answers for text in answers[i]], totals)
        )
        for i, texts in answers.items():
            own = [next(scores) for _ in texts]
            draw = np.random.default_rng([settings.seed, i, 1])
            found = best_against(
                texts, own, against=settings.against, margin=settings.margin, draw=draw
            )
            if isinstance(found, str):
                totals.skip(found)
            else:
                good, bad = found
                yield Pair(i, texts[good], texts[bad], (own[good], own[bad]))

    def _given(self, answers: dict[int, list[str]], totals: Totals) -> Iterator[Pair]:
        """The row's answer against each of the model's."""
        pairs = []
        for i, texts in answers.items():
            given = self.answering.prompts[i].given
            if given is None:
                totals.skip("the row has no answer", len(texts))
            else:
                pairs += [Pair(i, given, text) for text in texts]
        return self._judged(pairs, totals)

    def _edited(self, answers: dict[int, list[str]], totals: Totals) -> Iterator[Pair]:
        """What the edit makes of each of the model's answers, against that answer."""
        pairs, failed = [], Counter[str]()
        for i, text in [(number, text) for number in answers for text in answers[number]]:
            try:
                edited = self._edit(i, text)
            except UserError:
                raise
            except Exception as error:
                failed[f"the edit failed: {type(error).__name__}: {error}"[:120]] += 1
                continue
            if edited is None:
                totals.skip("the edit gives none")
            else:
                pairs.append(Pair(i, edited, text))
        count, times = sum(map(len, answers.values())), sum(failed.values())
        if times > self._settings.max_missing * count:
            raise UserError(f"{times} of {count}: {failed.most_common(1)[0][0]}")
        for reason, number in failed.items():
            totals.skip(reason, number)
        return self._judged(pairs, totals)

    def _edit(self, number: int, text: str) -> str | None:
        assert self._judges.edit is not None
        where = f"edit {self._settings.edit}"
        columns = accepted(self._judges.edit, self.answering.columns(number), where)
        edited = self._judges.edit(self.answering.prompts[number].text, text, **columns)
        if edited is not None and not isinstance(edited, str):
            raise UserError(f"{where} returned {type(edited).__name__}, neither text nor None")
        return edited

    def _judged(self, pairs: list[Pair], totals: Totals) -> Iterator[Pair]:
        """Pairs whose sides differ, and where there are rewards, in the right direction."""
        different = [pair for pair in pairs if pair.chosen.strip() != pair.rejected.strip()]
        totals.skip("identical sides", len(pairs) - len(different))
        if not self._judges.rewards:
            yield from different
            return
        sides = [(pair.prompt, text) for pair in different for text in pair[1:3]]
        scores = self.answering.scores(sides, totals)
        for pair, good, bad in zip(different, scores[::2], scores[1::2], strict=True):
            if good != good or bad != bad:
                totals.skip("no answer with a score")
            elif not enough(good - bad, self._settings.margin):
                totals.skip("below the margin")
            else:
                yield pair._replace(scores=(good, bad))

    def _row(self, pair: Pair) -> Row:
        row = self.answering.row(pair.prompt, {"chosen": pair.chosen, "rejected": pair.rejected})
        if pair.scores is not None:
            row["score_chosen"], row["score_rejected"] = (round(s, 6) for s in pair.scores)
        return row


def _shortcuts(path: Path, bundle: Bundle) -> list[str]:
    """Of the pairs as they will be trained on; or what keeps them from it."""
    config = {
        "sources": [str(path)],
        "max_length": bundle.model.config.max_positions,
        "packing": False,
        "batch_size": 1,
        "on_empty": "drop",
    }
    try:
        found = build(config, bundle.tokenizer, kind="pairs", seed=0).report.shortcuts
    except UserError as error:
        return [str(error)]
    return [] if found is None else found.lines()
