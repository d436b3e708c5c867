"""What a run that makes pairs is told."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ptjax.errors import UserError, did_you_mean
from ptjax.lookup import find
from ptjax.rewards.base import Reward, ready, rewards
from ptjax.rewards.choose import AGAINST
from ptjax.rewards.score import MAX_MISSING

CHOSEN = ("best", "edited", "given")
Edit = Callable[..., Any]


@dataclass(frozen=True)
class Asking:
    """How a model is asked, and its answers judged.

    Attributes:
      rewards: names, or dicts with a name, a weight and settings.
      samples: answers a prompt.
      max_missing: share of a batch's answers that rewards, or an edit, may fail on.
      keep_unfinished: whether answers that ran out of tokens stand for themselves.
      batch_size: prompts of a batch, which is kept whole or not at all.
      seed: of samples and of the choice at random.
      max_tokens: of an answer.
      temperature: of sampling.
      top_p: of sampling.
      top_k: of sampling.
      min_p: of sampling.
      dtype: of the computation.
    """

    rewards: tuple[Any, ...] = ()
    samples: int = 1
    max_missing: float = MAX_MISSING
    keep_unfinished: bool = False
    batch_size: int = 8
    seed: int = 0
    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    dtype: str = "float32"

    def __post_init__(self):
        self._one_of("dtype", ("float32", "bfloat16"))
        for name in ("samples", "batch_size", "max_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: at least 1 is expected")
        if not 0 <= self.max_missing <= 1:
            raise UserError(f"max_missing = {self.max_missing}: a share lies from 0 to 1")

    def _one_of(self, name: str, options: Sequence[str]) -> None:
        if (value := getattr(self, name)) not in options:
            raise UserError(f"{name} = {value!r}{did_you_mean(str(value), options)}")


@dataclass(frozen=True)
class Settings(Asking):
    """All that pairs depend on, beside the model and the prompts.

    Attributes:
      samples: answers a prompt.
      chosen: "best" of the samples by reward, "edited" (the model's answer as `edit` mends it) or
        "given" (the answer that the row has).
      against: what "best" stands against: the "worst" sample, or a "random" one of the others.
      edit: dotted path of a function `(prompt, completion, **row) -> str | None`.
      margin: how much greater the chosen side's score must be; pairs below it are left out.
    """

    samples: int = 4
    chosen: str = "best"
    against: str = "worst"
    edit: str | None = None
    margin: float = 0.0

    def __post_init__(self):
        self._one_of("chosen", CHOSEN)
        self._one_of("against", AGAINST)
        super().__post_init__()
        if not 0 <= self.margin < math.inf:
            raise UserError(f"margin = {self.margin}: it cannot be negative")
        if (self.chosen == "edited") != (self.edit is not None):
            raise UserError("chosen = 'edited' and an edit function go together: give both")
        if self.chosen == "best":
            self._check_best()
        if self.margin and not self.rewards:
            raise UserError("a margin is between scores: give rewards")

    def _check_best(self) -> None:
        if not self.rewards:
            raise UserError("chosen = 'best' is the best by reward: give rewards")
        if self.samples < 2:
            raise UserError(f"samples = {self.samples}: the best of at least 2 is expected")
        if self.temperature == 0:
            raise UserError("temperature = 0 gives the same answer each time; the best of which?")


@dataclass(frozen=True)
class AnswerSettings(Asking):
    """All that answers depend on, beside the model and the prompts.

    Attributes:
      keep: of a prompt's answers, the best by reward that are kept, at most; None: 1 where there
        are rewards, else all.
      least: score that an answer needs.
    """

    keep: int | None = None
    least: float | None = None

    def __post_init__(self):
        super().__post_init__()
        for name in ("keep", "least"):
            if getattr(self, name) is not None and not self.rewards:
                raise UserError(f"{name} = {getattr(self, name)} is by reward: give rewards")
        if self.keep is not None and not 1 <= self.keep <= self.samples:
            raise UserError(f"keep = {self.keep}: from 1 to samples = {self.samples} is expected")
        if self.samples > 1 and self.temperature == 0:
            raise UserError("temperature = 0 gives the same answer each time; samples = 1 will do")


@dataclass(frozen=True)
class Judges:
    """The user's functions, found."""

    rewards: tuple[Reward, ...]
    edit: Edit | None = field(default=None)

    @staticmethod
    def of(settings: Settings) -> "Judges":
        """Finds what the settings name.

        Raises:
          UserError: it is not there, or it is no function.
        """
        edit = None
        if settings.edit is not None:
            edit = find(settings.edit, {}, "edit")
            if not callable(edit):
                raise UserError(f"edit {settings.edit!r} is not a function")
        judges = rewards(settings.rewards)
        for judge in judges:
            ready(judge)
        return Judges(judges, edit)


def plain(value: Any) -> Any:
    """Mappings to dicts and sequences to lists, so that JSON gives back the same."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
