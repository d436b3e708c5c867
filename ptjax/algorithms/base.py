"""What an algorithm is: one pure loss over a batch of named columns, and what it needs to know."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array

from ptjax.errors import UserError, check_keys, did_you_mean
from ptjax.types import Batch, Mean, Outputs

Terms = dict[str, tuple[float, Mean]]


@dataclass(frozen=True)
class Algorithm:
    """A method, whole.

    Attributes:
      loss: `(Outputs, Batch, *, hyperparameters) -> (terms, metrics)`; pure and traced. Terms are
        `{name: (coefficient, Mean)}` and add up to the loss; a single Mean stands for
        `{"loss": (1.0, mean)}`. Metrics are `{name: Mean}`.
      needs: the fields of Outputs that the loss reads, or a function of the hyperparameters that
        says so.
      linear: where the loss is c · Σ w · logps, for these hyperparameters, with token weights w
        that the batch alone gives: the function `(Batch) -> w`, else None.
    """

    loss: Callable[..., tuple[Terms | Mean, dict[str, Mean]]]
    needs: Callable[..., tuple[str, ...]] | tuple[str, ...] = ("logps",)
    linear: Callable[..., Callable[[Batch], Array] | None] | None = None

    def hyperparameters(self) -> dict[str, Any]:
        """The loss's keyword-only arguments and their defaults."""
        parameters = inspect.signature(self.loss).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def bind(self, given: Mapping[str, Any], where: str) -> "Bound":
        """Fixes the hyperparameters.

        Raises:
          UserError: one that the loss does not know, or a required one that is not given.
        """
        known = self.hyperparameters()
        check_keys(given, known, where)
        for name, default in known.items():
            if default is inspect.Parameter.empty and name not in given:
                raise UserError(f"{where}: {name!r} has no default and must be set")
        values = {**known, **given}
        needs = self.needs(**values) if callable(self.needs) else self.needs
        linear = self.linear(**values) if self.linear else None
        return Bound(self, tuple(sorted(values.items())), needs, linear)


@dataclass(frozen=True)
class Bound:
    """An algorithm with its hyperparameters fixed; hashable, static under jit."""

    algorithm: Algorithm
    values: tuple[tuple[str, Any], ...]
    needs: tuple[str, ...]
    linear: Callable[[Batch], Array] | None

    def terms(self, outputs: Outputs, batch: Batch) -> tuple[Terms, dict[str, Mean]]:
        """The loss's terms and its metrics."""
        terms, metrics = self.algorithm.loss(outputs, batch, **dict(self.values))
        return ({"loss": (1.0, terms)} if isinstance(terms, Mean) else terms), metrics


def named(name: str, methods: Mapping[str, Algorithm]) -> Algorithm:
    """An algorithm by its row in `methods`, or by dotted path: `my_package.my_file.my_loss`.

    The path leads to an Algorithm, or to a loss function that reads `logps` alone.

    Raises:
      UserError: no such row, module or attribute.
    """
    if name in methods:
        return methods[name]
    module, _, attribute = name.rpartition(".")
    if not module:
        raise UserError(f"method: unknown {name!r}{did_you_mean(name, methods)}")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise UserError(f"method {name!r}: {error}") from error
    except AttributeError as error:
        raise UserError(f"method {name!r}: {module} has no {attribute!r}") from error
    if isinstance(found, Algorithm):
        return found
    if not callable(found):
        raise UserError(f"method {name!r} is neither an Algorithm nor a loss function")
    loss: Any = found
    return Algorithm(loss)
