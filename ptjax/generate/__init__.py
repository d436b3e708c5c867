"""Sampling from a model: prefill, decode with a cache, stop, stream."""

from ptjax.generate.engine import sample
from ptjax.generate.sampling import Sampling, draw
from ptjax.generate.transcript import Completion

__all__ = ["Completion", "Sampling", "draw", "sample"]
