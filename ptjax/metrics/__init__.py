"""What a run measures: JSON lines, TensorBoard and Weights & Biases; speed, flops and MFU."""

from ptjax.metrics.files import read_rows
from ptjax.metrics.speed import Throughput, forward_flops, mfu, peak_flops, train_flops
from ptjax.metrics.writer import Metrics

__all__ = [
    "Metrics",
    "Throughput",
    "forward_flops",
    "mfu",
    "peak_flops",
    "read_rows",
    "train_flops",
]
