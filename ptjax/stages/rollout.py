"""Answers of the run's own models in training: how they are sampled, judged and laid out.

B prompts, N answers, T tokens of an answer with its prompt.
"""

import functools
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from ptjax.data.examples import Examples
from ptjax.data.formats import recognise
from ptjax.data.kinds import KINDS
from ptjax.data.messages import BadForm
from ptjax.data.prompts import Prompt, read_prompt
from ptjax.data.template import Template
from ptjax.environments.base import Make
from ptjax.errors import UserError
from ptjax.generate.engine import sample
from ptjax.generate.transcript import Completion
from ptjax.hosts.exchange import from_each, own
from ptjax.models.compute import Compute
from ptjax.models.decoder import Decoder
from ptjax.rewards.base import Reward
from ptjax.rewards.failures import Reasons
from ptjax.rewards.score import Scores, ask, summed
from ptjax.sharding import alone
from ptjax.stages.conversation import converse
from ptjax.types import Weights

_log = logging.getLogger("ptjax")

Columns = dict[str, np.ndarray]

_LOOKED_AT = 100
"""Rows of a source that are read to see which columns it has."""


@dataclass(frozen=True)
class Sizes:
    """What the shapes of a rollout depend on.

    Attributes:
      n: answers to a prompt.
      max_tokens: of an answer.
      temperature: of sampling. A policy gradient scores answers at the same, other losses at 1.
      rows: answers that are written together.
      epochs: how often a group is trained on.
      minibatches: optimizer steps an epoch of a rollout.
      rewards: what judges answers; none where nothing does.
      length: T of every batch.
    """

    n: int
    max_tokens: int
    temperature: float
    rows: int
    epochs: int
    minibatches: int
    rewards: tuple[Reward, ...]
    length: int

    @property
    def updates(self) -> int:
        """Optimizer steps that a rollout serves."""
        return self.epochs * self.minibatches


@dataclass(frozen=True)
class Rollout(Sizes):
    """Samples answers, and asks rewards about them.

    Attributes:
      eval_temperature: of the answers to held-out prompts, where groups are sampled.
      top_k: of sampling, None for all tokens.
      top_p: of sampling, None for all tokens.
      stop_strings: text that ends an answer.
      environment: what makes the environments that answer the policy; None: an answer is one turn.
      turns: of the policy in an answer, at most.
      template: how an environment's turns are written.
      max_missing: share of the answers that are judged together which may fail to be, in training.
      accumulate: micro-batches of a batch.
      prompts_once: whether a group's answers share their prompt in packed rows.
      compares: whether the method tells a prompt's answers apart.
      longest: tokens of the longest prompt with the longest answer to it.
      examples: those that are trained on.
      held_out: those that are held out.
      tokenizer: turns answers into text.
      stop_ids: tokens that end an answer.
      compute: dtype of activations and cache.
      seed: of the run.
      reasons: why rewards failed, as far as it was told.
    """

    eval_temperature: float
    top_k: int | None
    top_p: float | None
    stop_strings: tuple[str, ...]
    environment: Make | None
    turns: int
    template: Template | None
    max_missing: float
    accumulate: int
    prompts_once: bool
    compares: bool
    longest: int
    examples: Examples
    held_out: Examples | None
    tokenizer: Any
    stop_ids: tuple[int, ...]
    compute: Compute
    seed: int
    reasons: Reasons = field(default_factory=Reasons)

    def draw(
        self,
        model: Decoder,
        params: Weights,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[Sequence[int]],
        *,
        n: int | None = None,
        temperature: float | None = None,
    ) -> list[list[Completion]]:
        """Answers to each prompt, which depend on its tokens and its key alone.

        Args:
          model: who answers.
          params: all its leaves.
          prompts: token ids.
          keys: from `key`, one a prompt.
          n: answers to a prompt; the run's own number where none is given.
          temperature: the run's own where none is given.
        """
        n = self.n if n is None else n
        states = [np.random.SeedSequence(key).generate_state(n).tolist() for key in keys]
        seeds = [seed for state in states for seed in state]
        said = self._sample(model, params, prompts, seeds, self.max_tokens, n, temperature)
        return [said[i : i + n] for i in range(0, len(said), n)]

    def converse(
        self,
        model: Decoder,
        params: Weights,
        prompts: Sequence[list[int]],
        keys: Sequence[Sequence[int]],
        rows: Sequence[Mapping[str, Any]],
        *,
        n: int,
        temperature: float | None = None,
    ) -> list[list[Completion]]:
        """As `draw`, of several turns each; `rows` are what the environments begin with."""
        assert self.environment is not None and self.template is not None
        states = [np.random.SeedSequence(key).generate_state(n).tolist() for key in keys]

        def turn(tokens: list[list[int]], seeds: list[int], room: list[int]) -> list[Completion]:
            once = tokens[::n]  # at the first turn all answers to a prompt have read the same
            if tokens != [prompt for prompt in once for _ in range(n)]:
                return self._sample(model, params, tokens, seeds, room, 1, temperature)
            return self._sample(model, params, once, seeds, room, n, temperature)

        said = converse(
            turn,
            self.template,
            self.environment,
            [row for row in rows for _ in range(n)],
            [prompt for prompt in prompts for _ in range(n)],
            [seed for state in states for seed in state],
            room=[
                min(self.max_tokens, self.length - len(prompt))
                for prompt in prompts
                for _ in range(n)
            ],
            turns=self.turns,
            stop_ids=self.stop_ids,
            time_limit=self.environment.time_limit,
        )
        return [said[i : i + n] for i in range(0, len(said), n)]

    def _sample(
        self,
        model: Decoder,
        params: Weights,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        max_tokens: int | Sequence[int],
        n: int,
        temperature: float | None,
    ) -> list[Completion]:
        return sample(
            model,
            params,
            prompts,
            max_tokens=max_tokens,
            n=n,
            temperature=self.temperature if temperature is None else temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            stop_ids=self.stop_ids,
            stop_strings=self.stop_strings,
            rows=self.rows,
            longest=self.longest,
            tokenizer=self.tokenizer,
            seed=seeds,
            compute=self.compute,
        )

    @property
    def reward_names(self) -> list[str]:
        """A name for each reward, numbered where one is there twice."""
        names = [reward.name.rpartition(".")[2] for reward in self.rewards]
        return [
            name if names.count(name) == 1 else f"{name}_{names[:i].count(name) + 1}"
            for i, name in enumerate(names)
        ]

    @functools.cached_property
    def columns_of_rows(self) -> frozenset[str]:
        """What rewards are given of each row, None where it lacks one: columns of all sources."""
        return self.columns_of(training=True) | self.columns_of(training=False)

    def columns_of(self, *, training: bool) -> frozenset[str]:
        """Columns that some rows of each source have, of training's or of those held out."""
        examples = self.examples if training else self.held_out
        numbers = [] if examples is None else _spread(examples.source)
        rows = (self.prompt(number, training=training).facts() for number in numbers)
        return frozenset(name for row in rows for name in row)

    @property
    def judged(self) -> bool:
        """Whether any reward has a say, and not all are monitors."""
        return len(self.monitors) < len(self.rewards)

    @property
    def monitors(self) -> list[str]:
        """The names of those of weight 0: measured, and not trained on."""
        named = zip(self.reward_names, self.rewards, strict=True)
        return [name for name, reward in named if not reward.weight]

    def keys(
        self, step: int, numbers: Sequence[int], *, training: bool, before: Sequence[int] = ()
    ) -> list[list[int]]:
        """Randomness of examples in a step, wherever in the batch, on whatever mesh they stand.

        An example that is there again has other randomness the second time.

        Args:
          step: optimizer steps taken so far.
          numbers: the examples.
          training: whether they are trained on.
          before: examples that were asked in the same step already.
        """
        there, found = Counter(before), []
        for number in numbers:
            again = [there[number]] if there[number] else []
            found.append([self.seed % 2**32, int(training), step, number, *again])
            there[number] += 1
        return found

    def judge(
        self,
        numbers: Sequence[int],
        answers: Sequence[Sequence[Completion]],
        *,
        training: bool,
        max_missing: float | None = None,
    ) -> Scores:
        """What the rewards say, answer after answer; NaN where they say nothing.

        Why they fail is told, each reason once a run. Of several processes each asks about its own
        prompts, all answers to one together.

        Args:
          numbers: the prompts' examples.
          answers: to each of them, of each as many.
          training: whether the examples are those that are trained on.
          max_missing: share of the answers that rewards may fail on; where none is given, the run's
            own in training, and 1 of held-out answers: a batch of them may be a single one.

        Raises:
          UserError: rewards fail on more than that.
        """
        if max_missing is None:
            max_missing = self.max_missing if training else 1.0
        prompts = [self.prompt(number, training=training) for number in numbers]
        names = sorted(self.columns_of_rows.union(*(prompt.facts() for prompt in prompts)))
        mine = own(len(prompts))

        def judged() -> list[list[float | str | None]]:
            with alone():
                return self._ask(prompts[mine], answers[mine], names)

        parts = from_each(judged)
        said = [[value for part in parts for value in part[j]] for j in range(len(self.rewards))]
        missing = [one.failed for several in answers for one in several]
        found = summed(self.rewards, said, missing, max_missing=max_missing)
        of = "answers" if training else "held-out answers"
        line = self.reasons.tell(found.failed, len(missing), of)
        if line and jax.process_index() == 0:
            _log.warning(line)
        return found

    def _ask(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[Sequence[Completion]],
        names: Sequence[str],
    ) -> list[list[float | str | None]]:
        """What each reward says of each answer, which sees the columns of these names and ours."""
        said = [one for several in answers for one in several]
        asked = [p for p, several in zip(prompts, answers, strict=True) for _ in several]
        rows = [prompt.facts() for prompt in asked]
        columns = {name: [row.get(name) for row in rows] for name in names}
        columns["completion_tokens"] = [one.written for one in said]
        if self.environment is not None:
            columns["turns"] = [list(one.turns) for one in said]
            columns["environment_reward"] = [one.reward for one in said]
        texts = [prompt.text for prompt in asked]
        failed = [one.failed for one in said]
        return ask(self.rewards, texts, [one.text for one in said], columns, missing=failed)

    def prompt(self, number: int, *, training: bool) -> Prompt:
        """What the row of an example asks, and all else that it holds."""
        examples = self.examples if training else self.held_out
        assert examples is not None
        source = examples.encodings[examples.source[number]].source
        try:
            form, row = recognise(
                examples.content(number),
                KINDS["prompts"],
                form=source.format,
                columns=dict(source.columns),
            )
            return read_prompt(row, form, examples.where(number))
        except BadForm as error:
            raise UserError(f"{examples.where(number)}: {error.reason}: it has changed") from error

    def columns(self, rows: int, width: int) -> Columns:
        """Empty columns of sequences, to be filled: of weight 0."""
        shape = (rows, width, self.length)
        return {
            "tokens": np.zeros(shape, np.int32),
            "valid": np.zeros(shape, bool),
            "mask": np.zeros(shape, np.float32),
            "weights": np.zeros(shape[:2], np.float32),
            "scores": np.zeros(shape[:2], np.float32),
            "margin": np.zeros(rows, np.float32),
        }


def _spread(source: Int[np.ndarray, " E"]) -> list[int]:
    """Some examples of every source, from its first to its last; all of a small one."""
    found = []
    for one in np.unique(source):
        of = np.flatnonzero(source == one)
        found += of[np.unique(np.linspace(0, len(of) - 1, _LOOKED_AT).astype(int))].tolist()
    return found


def put_answer(columns: Columns, row: int, n: int, prompt: Int[np.ndarray, " P"], said: Completion):
    """Writes a sampled answer behind its prompt; what the model wrote is trained, its ends too."""
    both = np.append(prompt, np.array(said.tokens, np.int32))
    columns["tokens"][row, n, : len(both)] = both
    columns["valid"][row, n, : len(both)] = True
    columns["mask"][row, n, len(prompt) : len(both)] = 1 if said.own is None else said.own


def told(answers: Sequence[Sequence[Completion]]) -> dict[str, float]:
    """Mean tokens that the model wrote in an answer, and the share that ran out of room."""
    all_answers = [one for several in answers for one in several]
    return {
        "rollout/tokens": float(np.mean([one.written for one in all_answers])),
        "rollout/truncated": float(np.mean([one.finished == "length" for one in all_answers])),
    }
