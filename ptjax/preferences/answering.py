"""What makers of files share: a model answers prompts, rewards judge, a journal keeps the rows."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ptjax.data.config import SourceConfig
from ptjax.data.prompts import Prompt
from ptjax.data.template import Template
from ptjax.errors import UserError
from ptjax.generate.chat import chat_ids
from ptjax.generate.engine import sample
from ptjax.models.compute import Compute
from ptjax.models.fingerprint import fingerprint
from ptjax.models.load import Bundle
from ptjax.preferences.journal import Journal
from ptjax.preferences.prompts import digest
from ptjax.preferences.settings import Asking, plain
from ptjax.preferences.totals import Totals
from ptjax.progress import Progress
from ptjax.rewards.base import Reward
from ptjax.rewards.score import score

Row = dict[str, Any]


class Answering:
    """A model that answers prompts; what it says to one depends on no other.

    Args:
      bundle: the model.
      prompts: what is asked.
      settings: how it is sampled.
      rewards: what judges the answers.

    Raises:
      UserError: a prompt that the model cannot be asked.
    """

    def __init__(
        self,
        bundle: Bundle,
        prompts: Sequence[Prompt],
        settings: Asking,
        rewards: Sequence[Reward],
    ):
        self.bundle = bundle
        self.prompts = prompts
        self._settings = settings
        self._rewards = rewards
        self._template = Template(bundle.tokenizer) if bundle.tokenizer.chat_template else None
        self._ids = [self._encode(prompt) for prompt in prompts]
        self._names = sorted({name for prompt in prompts for name in prompt.columns})

    def _encode(self, prompt: Prompt) -> list[int]:
        if self._template is None:
            if not isinstance(prompt.asked, str):
                raise UserError(
                    f"{prompt.where}: {self.bundle.source} has no chat template, so it takes "
                    "prompts of text only"
                )
            return self.bundle.tokenizer.encode(prompt.asked)
        try:
            return chat_ids(self._template, prompt.messages, prompt.tools)
        except UserError as error:
            raise UserError(f"{prompt.where}: {error}") from error

    def answers(self, numbers: Sequence[int], totals: Totals) -> dict[int, list[str]]:
        """What the model says to each prompt; answers that no row can be made of are counted."""
        settings, bundle = self._settings, self.bundle
        room = bundle.model.config.max_positions
        fitting = [i for i in numbers if len(self._ids[i]) < room]
        totals.prompts += len(numbers)
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

    def scores(self, answers: Sequence[tuple[int, str]], totals: Totals) -> list[float]:
        """What the rewards say of answers, each with its prompt's number; NaN: nothing."""
        rows = [self.columns(i) for i, _ in answers]
        names = rows[0] if rows else ()
        found = score(
            self._rewards,
            [self.prompts[i].text for i, _ in answers],
            [text for _, text in answers],
            {name: [row[name] for row in rows] for name in names},
            max_missing=self._settings.max_missing,
        )
        for reason, times in found.failed.items():
            totals.drop(reason, times)
        return found.total.tolist()

    def columns(self, number: int) -> Row:
        """A prompt's other columns, its conversation and its own answer."""
        prompt = self.prompts[number]
        columns = {name: prompt.columns.get(name) for name in self._names}
        return {**columns, **prompt.facts()}

    def row(self, number: int, said: dict[str, str]) -> Row:
        """In TRL's form: messages where the model has a chat template, else text.

        Args:
          number: of the prompt.
          said: what else stands in the row, column -> text of the assistant.
        """
        prompt = self.prompts[number]
        row: Row = {"prompt": prompt.asked, **said}
        if self._template is not None:
            sides = {k: [{"role": "assistant", "content": text}] for k, text in said.items()}
            row = {"prompt": prompt.messages, **sides}
        return row | ({"tools": prompt.tools} if prompt.tools else {})


def write_rows(
    answering: Answering,
    out: str | os.PathLike[str],
    settings: Asking,
    rows: Callable[[Sequence[int], Totals], list[Row]],
    *,
    source: SourceConfig,
    what: str,
    quiet: bool,
) -> tuple[Path, Totals]:
    """Writes the rows of all prompts, batch by batch; goes on where a killed run stopped.

    Args:
      answering: who answers.
      out: the file to make.
      settings: all that its bytes depend on, beside model and prompts.
      rows: `(numbers of prompts, totals) -> rows`; depends on nothing before it.
      source: of the prompts, for the message.
      what: the rows are, for progress and summary.
      quiet: show no progress.

    Raises:
      UserError: the file was begun with other settings; no row at all.
    """
    bundle, prompts = answering.bundle, list(answering.prompts)
    record = {
        "model": bundle.source,
        "weights": _digest(bundle),
        "template": bundle.tokenizer.chat_template,
        "prompts": digest(prompts),
        "writes": what,
        **plain(vars(settings)),
    }
    journal = Journal(Path(out), record)
    totals = Totals.of(journal.totals)
    start = journal.done * settings.batch_size
    with Progress(len(prompts), unit="prompt", start=start, quiet=quiet) as progress:
        for first in range(start, len(prompts), settings.batch_size):
            batch = range(first, min(first + settings.batch_size, len(prompts)))
            made = rows(batch, totals)
            journal.append(made, totals.to_dict())
            progress.update(batch.stop, {what: totals.rows})
    if not totals.rows:
        cut = "; raise max_tokens, or set keep_unfinished" if "unfinished" in totals.dropped else ""
        raise UserError(f"{source.path}: no {what} were made of it: {totals.reasons()}{cut}")
    if not journal.finished:
        journal.finish()
    return journal.path, totals


def _digest(bundle: Bundle) -> str:
    """One checksum of all weights."""
    leaves = sorted(fingerprint(bundle.params).items())
    return hashlib.sha256(repr(leaves).encode()).hexdigest()[:16]
