"""What an algorithm is: stages that add columns, and one pure loss that reads them."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array

from ptjax.algorithms.hparams import keywords, typed
from ptjax.errors import UserError, check_keys
from ptjax.lookup import find
from ptjax.stages.base import Stage
from ptjax.types import Batch, Mean, Outputs

Terms = dict[str, tuple[float | Array, Mean]]
Fields = tuple[str, ...]
_REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Algorithm:
    """A method, whole.

    Attributes:
      loss: `(Outputs, Batch, *, hyperparameters) -> (terms, metrics)`; pure and traced. Terms are
        `{name: (coefficient, Mean)}` and add up to the loss; a single Mean stands for
        `{"loss": (1.0, mean)}`. Metrics are `{name: Mean}`.
      stages: what adds columns to a batch before the loss sees it, in order. Their keyword-only
        arguments are hyperparameters too.
      needs: the fields of Outputs that the loss reads, or a function of the hyperparameters that
        says so.
      linear: where the loss is c · Σ w · logps, for these hyperparameters, with token weights w
        that the batch alone gives: the function `(Batch) -> w`, else None.
      data: the kind of examples it reads, a key of `ptjax.data.kinds.KINDS`.
      head: what the model ends in, one of `ptjax.models.heads.HEADS`, or a function of the
        hyperparameters that says so; its keyword-only arguments are hyperparameters too.
      judge: what is measured on held-out data, an algorithm without stages; None: the loss itself
        and its metrics.
      forward: of the hyperparameters: fields of `ptjax.forward.ForwardOptions` that they set; its
        keyword-only arguments are hyperparameters too.
      reads: of a judge, all columns that its loss reads, so that held-out data go through no stage
        behind those that write them; None: it may read any.
      coupled: whether the loss couples the rows of a batch, for these hyperparameters, so that
        micro-batches would change it.
      advise: `(scores, *, hyperparameters) -> str | None`, of the data's judgements [E, N] before a
        run: what is worth a warning.
      tell: `(scores, margin, *, hyperparameters) -> str | None`, of the same and the pairs' margins
        [E]: what of them is used, in a line.
    """

    loss: Callable[..., tuple[Terms | Mean, dict[str, Mean]]]
    stages: tuple[Stage, ...] = ()
    needs: Callable[..., Fields] | Fields = ("logps",)
    linear: Callable[..., Callable[[Batch], Array] | None] | None = None
    data: str = "sequences"
    head: Callable[..., str] | str = "lm"
    forward: Callable[..., Mapping[str, Any]] | None = None
    judge: "Algorithm | None" = None
    reads: tuple[str, ...] | None = None
    coupled: Callable[..., bool] | bool = False
    advise: Callable[..., str | None] | None = None
    tell: Callable[..., str | None] | None = None

    def hyperparameters(self) -> dict[str, Any]:
        """The keyword-only arguments of loss, stages, head and forward, and their defaults."""
        found: dict[str, Any] = {}
        for function in self._functions():
            for name, default in keywords(function).items():
                if default is not _REQUIRED or name not in found:
                    found[name] = default
        return found

    def _functions(self) -> tuple[Callable[..., Any], ...]:
        asked = (of for stage in self.stages for of in (stage.wanted, stage.compares))
        others = (*asked, self.head, self.forward)
        stages = (stage.run for stage in self.stages)
        return (*stages, self.loss, *(other for other in others if callable(other)))

    def bind(self, given: Mapping[str, Any], where: str) -> "Bound":
        """Fixes the hyperparameters.

        Raises:
          UserError: one that nothing here knows, a required one that is not given, or one of a type
            that the function does not take.
        """
        known = self.hyperparameters()
        check_keys(given, known, where)
        for name, default in known.items():
            if default is _REQUIRED and name not in given:
                raise UserError(f"{where}: {name!r} has no default and must be set")
        for function in self._functions():
            given = typed(function, given, where)
        values = {name: _hashable(value) for name, value in {**known, **given}.items()}
        stages = tuple(s for s in self.stages if s.wanted is None or known_call(s.wanted, values))
        judge = self if self.judge is None else self.judge
        return Bound(
            algorithm=self,
            values=tuple(sorted(values.items())),
            needs=self.needs if isinstance(self.needs, tuple) else known_call(self.needs, values),
            linear=known_call(self.linear, values) if self.linear else None,
            head=known_call(self.head, values) if callable(self.head) else self.head,
            forward=tuple(known_call(self.forward, values).items()) if self.forward else (),
            stages=stages,
            coupled=known_call(self.coupled, values) if callable(self.coupled) else self.coupled,
            compares=any(known_call(s.compares, values) for s in stages if s.compares is not None),
            judge=None if judge is self else judge.bind(_known(judge.loss, values), where),
        )


@dataclass(frozen=True)
class Bound:
    """An algorithm with its hyperparameters fixed; hashable, static under jit."""

    algorithm: Algorithm
    values: tuple[tuple[str, Any], ...]
    needs: Fields
    linear: Callable[[Batch], Array] | None
    head: str = "lm"
    forward: tuple[tuple[str, Any], ...] = ()
    stages: tuple[Stage, ...] = ()
    coupled: bool = False
    compares: bool = False
    judge: "Bound | None" = None

    @property
    def judged(self) -> "Bound":
        """What held-out data is measured by."""
        return self if self.judge is None else self.judge

    @property
    def held_out(self) -> tuple[Stage, ...]:
        """The stages of held-out data: up to the last that the judge or a measure needs."""
        reads = self.judged.algorithm.reads
        if reads is None:
            return self.stages
        asked = [bool(stage.measures or {*reads} & {*stage.writes}) for stage in self.stages]
        return self.stages[: len(asked) - asked[::-1].index(True)] if any(asked) else ()

    def advice(self, scores: np.ndarray) -> str | None:
        """What of the data's judgements, [E, N], is worth a warning."""
        if self.algorithm.advise is None:
            return None
        return known_call(self.algorithm.advise, dict(self.values), scores)

    def told(self, scores: np.ndarray, margin: np.ndarray) -> str | None:
        """What of the data's judgements, [E, N], and of pairs' margins, [E], is used."""
        if self.algorithm.tell is None:
            return None
        return known_call(self.algorithm.tell, dict(self.values), scores, margin)

    def terms(self, outputs: Outputs, batch: Batch) -> tuple[Terms, dict[str, Mean]]:
        """The loss's terms and its metrics."""
        terms, metrics = known_call(self.algorithm.loss, dict(self.values), outputs, batch)
        return ({"loss": (1.0, terms)} if isinstance(terms, Mean) else terms), metrics


def known_call(function: Callable[..., Any], values: Mapping[str, Any], *args: Any) -> Any:
    """Calls a function with those of the values that it takes by keyword."""
    return function(*args, **_known(function, values))


def _known(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(values)
    return {name: values[name] for name in keywords(function) if name in values}


def _hashable(value: Any) -> Any:
    """Lists and mappings from a config, as tuples."""
    if isinstance(value, Mapping):
        return tuple((key, _hashable(item)) for key, item in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def named(name: Any, methods: Mapping[str, Algorithm]) -> Algorithm:
    """An algorithm by its row in `methods`, or by dotted path: `my_package.my_file.my_loss`.

    The path leads to an Algorithm, or to a loss function that reads `logps` alone.

    Raises:
      UserError: no such row, module or attribute, or no string.
    """
    found = find(name, methods, "config.method")
    if isinstance(found, Algorithm):
        return found
    if not callable(found):
        raise UserError(f"config.method {name!r} is neither an Algorithm nor a loss function")
    loss: Any = found
    return Algorithm(loss)
