"""What a run measures: JSON lines, TensorBoard and Weights & Biases; speed, flops and MFU."""

from ptjax.metrics.speed import Throughput, mfu, peak_flops, train_flops
from ptjax.metrics.writer import Metrics, read_rows

__all__ = ["Metrics", "Throughput", "mfu", "peak_flops", "read_rows", "train_flops"]
