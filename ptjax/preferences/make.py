"""Prompts in, pairs out: the model answers, rewards or an edit judge, the journal keeps."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ptjax.data.config import SourceConfig
from ptjax.data.pipeline import build
from ptjax.data.prompts import Prompt
from ptjax.data.template import Template
from ptjax.errors import UserError
from ptjax.generate.chat import chat_ids
from ptjax.generate.engine import sample
from ptjax.models.decoder import Compute
from ptjax.models.fingerprint import fingerprint
from ptjax.models.load import Bundle
from ptjax.preferences.journal import Journal
from ptjax.preferences.prompts import digest, read_prompts
from ptjax.preferences.settings import Judges, Settings, plain
from ptjax.preferences.totals import Totals
from ptjax.progress import Progress
from ptjax.rewards.base import accepted
from ptjax.rewards.choose import best_against, enough
from ptjax.rewards.score import score
from ptjax.workdir import load

Row = dict[str, Any]


class Made(NamedTuple):
    """What came of a run."""

    totals: Totals
    shortcuts: list[str]
    """What tells the sides apart without reading them: see `ptjax.data.shortcuts`."""

    def lines(self) -> list[str]:
        """The summary, for people."""
        return [*self.totals.lines(), *(f"sides       {line}" for line in self.shortcuts)]


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
    judges = Judges.of(settings)
    source = prompts if isinstance(prompts, SourceConfig) else SourceConfig(prompts)
    asked = read_prompts(source)
    if settings.chosen == "given" and not any(prompt.given for prompt in asked):
        raise UserError(f"{source.path}: no row has an answer of its own (a completion)")
    bundle = load(model, head="lm")
    maker = _Maker(bundle, asked, settings, judges)
    record = {
        "model": bundle.source,
        "weights": _digest(bundle),
        "template": bundle.tokenizer.chat_template,
        "prompts": digest(asked),
        **plain(vars(settings)),
    }
    journal = Journal(Path(out), record)
    totals = Totals.of(journal.totals)
    start = journal.done * settings.batch_size
    with Progress(len(asked), unit="prompt", start=start, quiet=quiet) as progress:
        for first in range(start, len(asked), settings.batch_size):
            batch = range(first, min(first + settings.batch_size, len(asked)))
            rows = maker.batch(batch, totals)
            journal.append(rows, totals.to_dict())
            progress.update(batch.stop, {"pairs": totals.pairs})
    if not totals.pairs:
        raise UserError(f"{source.path}: no pair was made of it: {totals.reasons()}")
    if not journal.finished:
        journal.finish()
    return Made(totals, _shortcuts(journal.path, bundle))


class _Maker:
    """Makes the pairs of one batch after the other; a batch depends on nothing before it."""

    def __init__(self, bundle: Bundle, prompts: list[Prompt], settings: Settings, judges: Judges):
        self._bundle = bundle
        self._settings = settings
        self._judges = judges
        self._template = Template(bundle.tokenizer) if bundle.tokenizer.chat_template else None
        self._prompts = prompts
        self._ids = [self._encode(prompt) for prompt in prompts]
        self._names = sorted({name for prompt in prompts for name in prompt.columns})

    def batch(self, numbers: Sequence[int], totals: Totals) -> list[Row]:
        """The rows of these prompts, added to the totals."""
        totals.prompts += len(numbers)
        answers = self._answers(numbers, totals)
        make = {"best": self._best, "edited": self._edited, "given": self._given}
        pairs = list(make[self._settings.chosen](answers, totals))
        for pair in pairs:
            totals.add(pair.scores)
        return [self._row(pair) for pair in pairs]

    def _encode(self, prompt: Prompt) -> list[int]:
        if self._template is None:
            if not isinstance(prompt.asked, str):
                raise UserError(
                    f"{prompt.where}: {self._bundle.source} has no chat template, so it takes "
                    "prompts of text only"
                )
            return self._bundle.tokenizer.encode(prompt.asked)
        try:
            return chat_ids(self._template, prompt.messages, prompt.tools)
        except UserError as error:
            raise UserError(f"{prompt.where}: {error}") from error

    def _answers(self, numbers: Sequence[int], totals: Totals) -> dict[int, list[str]]:
        """What the model says to each prompt, without answers that cannot stand in a pair."""
        settings, bundle = self._settings, self._bundle
        room = bundle.model.config.max_positions
        fitting = [i for i in numbers if len(self._ids[i]) < room]
        totals.skip("the prompt is too long for the model", len(numbers) - len(fitting))
        repeated = [i for i in fitting for _ in range(settings.samples)]
        found = sample(
            bundle.model,
            bundle.params,
            [self._ids[i] for i in repeated],
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            min_p=settings.min_p,
            stop_ids=bundle.stop_ids,
            tokenizer=bundle.tokenizer,
            seed=[seed for i in fitting for seed in self._seeds(i)],
            compute=Compute(dtype=settings.dtype),
        )
        totals.answers += len(found)
        answers: dict[int, list[str]] = {i: [] for i in fitting}
        for i, one in zip(repeated, found, strict=True):
            if one.finished != "stop" and not settings.keep_unfinished:
                totals.drop("unfinished")
            elif not one.text.strip():
                totals.drop("empty")
            elif one.text in answers[i]:
                totals.drop("said before")
            else:
                answers[i].append(one.text)
        return answers

    def _seeds(self, number: int) -> list[int]:
        """Of a prompt's samples, whatever batch it is in."""
        sequence = np.random.SeedSequence([self._settings.seed, number])
        return sequence.generate_state(self._settings.samples).tolist()

    def _best(self, answers: dict[int, list[str]], totals: Totals) -> Iterator[Pair]:
        settings = self._settings
        scores = iter(self._score([(i, text) for i in answers for text in answers[i]], totals))
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
            given = self._prompts[i].given
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
        columns = accepted(self._judges.edit, self._columns(number), where)
        edited = self._judges.edit(self._prompts[number].text, text, **columns)
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
        scores = self._score(sides, totals)
        for pair, good, bad in zip(different, scores[::2], scores[1::2], strict=True):
            if good != good or bad != bad:
                totals.skip("no answer with a score")
            elif not enough(good - bad, self._settings.margin):
                totals.skip("below the margin")
            else:
                yield pair._replace(scores=(good, bad))

    def _score(self, answers: Sequence[tuple[int, str]], totals: Totals) -> list[float]:
        rows = [self._columns(i) for i, _ in answers]
        names = rows[0] if rows else ()
        found = score(
            self._judges.rewards,
            [self._prompts[i].text for i, _ in answers],
            [text for _, text in answers],
            {name: [row[name] for row in rows] for name in names},
            max_missing=self._settings.max_missing,
        )
        for reason, times in found.failed.items():
            totals.drop(reason, times)
        return found.total.tolist()

    def _columns(self, number: int) -> Row:
        """A row's other columns, its conversation and its own answer."""
        prompt = self._prompts[number]
        columns = {name: prompt.columns.get(name) for name in self._names}
        return {**columns, **prompt.facts()}

    def _row(self, pair: Pair) -> Row:
        """In TRL's form: messages where the model has a chat template, else text."""
        prompt = self._prompts[pair.prompt]
        asked: Any = prompt.asked
        sides: list[Any] = [pair.chosen, pair.rejected]
        if self._template is not None:
            asked = prompt.messages
            sides = [[{"role": "assistant", "content": side}] for side in sides]
        row = {"prompt": asked, "chosen": sides[0], "rejected": sides[1]}
        if prompt.tools:
            row["tools"] = prompt.tools
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


def _digest(bundle: Bundle) -> str:
    """One checksum of all weights."""
    leaves = sorted(fingerprint(bundle.params).items())
    return hashlib.sha256(repr(leaves).encode()).hexdigest()[:16]
