"""How fast a run is: useful tokens a second, floating-point operations, share of the peak (MFU)."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

Real = int | float
_TERA = 1e12

# (words of device_kind, lower case; the first match counts): dense peak of one jax device in
# TFLOP/s for bfloat16 (float16 where there is none), and for float32 as jax multiplies it by
# default (TPU: bfloat16 passes on the same units; NVIDIA from Ampere on: TF32). No sparsity.
# TPU: peak compute per chip (bf16) of docs.cloud.google.com/tpu/docs/{v3,v4,v5e,v5p,v6e,tpu7x}; v2:
# arXiv:1907.10701. A chip of v2, v3 and tpu7x is two devices, so those rows hold half its figure.
# NVIDIA: datasheets; those of Hopper, Ada and A10G print figures with sparsity, which are halved.
_PEAKS: tuple[tuple[str, float, float], ...] = (
    ("tpu v2", 22.5, 22.5),
    ("tpu v3", 61.5, 61.5),
    ("tpu v4", 275.0, 275.0),
    ("tpu v5 lite", 197.0, 197.0),
    ("tpu v5e", 197.0, 197.0),
    ("tpu v5p", 459.0, 459.0),
    ("tpu v5", 459.0, 459.0),
    ("tpu v6e", 918.0, 918.0),
    ("tpu v6 lite", 918.0, 918.0),
    ("tpu7x", 1153.5, 1153.5),
    ("tpu v7x", 1153.5, 1153.5),
    ("b200", 2250.0, 1100.0),  # HGX B200, 1,000 W
    ("h200", 989.5, 494.5),  # nvidia.com/en-us/data-center/h200: 1,979 and 989 with sparsity
    ("h100 pcie", 756.5, 378.0),  # NVIDIA H100 datasheet: 1,513 and 756 with sparsity
    ("h100 nvl", 835.5, 417.5),  # the same: 1,671 and 835 with sparsity
    ("h100", 989.5, 494.5),  # the same, SXM: 1,979 and 989 with sparsity
    ("a100", 312.0, 156.0),  # nvidia-a100-datasheet-us-nvidia-1758950-r4
    ("a10g", 70.0, 35.0),  # AWS's A10G datasheet: 140 and 70 with sparsity
    ("a10", 125.0, 62.5),  # NVIDIA's a10-datasheet
    ("l40s", 362.0, 183.0),  # nvidia.com/en-us/data-center/l40s: 362 (733 with sparsity), 183 (366)
    ("l4", 121.0, 60.0),  # nvidia.com/en-us/data-center/l4: 242 and 120 with sparsity
    ("t4", 65.0, 8.1),  # t4-tensor-core-datasheet-951643
    ("v100-pcie", 112.0, 14.0),  # volta-v100-datasheet-update-us-1165301-r5
    ("v100", 125.0, 15.7),  # the same, SXM2
)


def peak_flops(device_kind: str, dtype: str = "bfloat16") -> float | None:
    """The peak of one jax device in floating-point operations a second; None where unknown (CPU).

    Args:
      device_kind: `jax.devices()[0].device_kind`, e.g. `TPU v5 lite` or `NVIDIA H100 80GB HBM3`.
      dtype: the compute dtype, `bfloat16` (or `float16`) or `float32`.
    """
    kind = device_kind.lower()
    for part, half, single in _PEAKS:
        if re.search(rf"\b{part}\b", kind):
            return (single if dtype == "float32" else half) * _TERA
    return None


def train_flops(
    *,
    tokens: Real,
    pairs: Real,
    trained: Real,
    frozen: Real,
    attention_width: Real,
    head: Real = 0,
    head_tokens: Real = 0,
    head_trained: bool = True,
) -> float:
    """Model flops of one training step: forward and backward once, rematerialisation not counted.

    `tokens · (6 · trained + 4 · frozen) + head_tokens · head · (6 or 4) + 12 · width · pairs`

    A frozen weight is multiplied forward and for the gradient of its input (2 + 2), a trained one
    also for its own (2). Scores and their application cost 4 flops a pair and unit of width forward
    and twice that backward (PaLM, arXiv:2204.02311, appendix B, with the true lengths).

    Args:
      tokens: tokens the decoder saw, padding not counted.
      pairs: query-key pairs attended, Σ n(n+1)/2 over sequences of n tokens.
      trained: weights in matrix products that are trained (adapters included, head not).
      frozen: weights in matrix products that are frozen, head not included.
      attention_width: layers · heads · head dimension.
      head: weights of the output projection.
      head_tokens: tokens it was computed for (the trained ones).
      head_trained: whether it is trained.
    """
    decoder = tokens * (6 * trained + 4 * frozen)
    logits = head_tokens * head * (6 if head_trained else 4)
    return float(decoder + logits + 12 * attention_width * pairs)


def forward_flops(
    *,
    tokens: Real,
    pairs: Real,
    weights: Real,
    attention_width: Real,
    head: Real = 0,
    head_tokens: Real = 0,
) -> float:
    """Model flops of one forward pass without a gradient: a third of a step of trained weights.

    `2 · tokens · weights + 2 · head_tokens · head + 4 · width · pairs`; arguments as `train_flops`,
    `weights` those in matrix products, head not included.
    """
    return float(2 * tokens * weights + 2 * head_tokens * head + 4 * attention_width * pairs)


def mfu(flops: Real, seconds: Real, peak: Real | None) -> float | None:
    """Share of the peak in 0..1; None without a peak. `flops` and `peak` are over all devices."""
    return None if peak is None or seconds <= 0 else flops / seconds / peak


class Throughput:
    """Useful tokens a second and MFU between two reads, and over all sessions of a run.

    Time inside `paused()` and what is given to `compiled` does not count. Of a run that samples,
    the rate of training apart from sampling and rewards too.

    Args:
      peak: floating-point operations a second of all devices; None: unknown.
      samples: whether the run samples answers.
      clock: seconds, for tests.

    Attributes:
      tokens: useful tokens of all steps.
      flops: model flops of all steps.
      programs: how often a step was compiled.
      compile_seconds: seconds of compilation.
    """

    def __init__(
        self,
        *,
        peak: Real | None = None,
        samples: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._peak = peak
        self._samples = samples
        self._clock = clock
        self.begin({})

    def begin(self, before: Mapping[str, float]) -> None:
        """Starts the clock, after what earlier sessions came to (their `state()`)."""
        self._start = self._clock() - before.get("seconds", 0.0)
        self._read_seconds = self.seconds
        self._window = [0.0] * 5
        self.tokens = before.get("tokens", 0.0)
        self.flops = before.get("flops", 0.0)
        self.programs = before.get("programs", 0)
        self.compile_seconds = before.get("compile_seconds", 0.0)

    def state(self) -> dict[str, float]:
        """What the run came to so far, for a checkpoint."""
        names = ("seconds", "tokens", "flops", "programs", "compile_seconds")
        return {name: getattr(self, name) for name in names}

    @property
    def seconds(self) -> float:
        """Seconds of training in all, pauses and compilation left out."""
        return self._clock() - self._start

    def update(
        self,
        *,
        tokens: Real,
        slots: Real = 0,
        filled: Real = 0,
        flops: Real = 0,
        sampling: Real = 0,
    ) -> None:
        """Adds a step.

        Args:
          tokens: useful tokens; a prompt that stands once for several answers counts for each.
          slots: places that it computed, with padding.
          filled: those that hold a token.
          flops: model flops.
          sampling: seconds that its answers took to write and to be judged.
        """
        self.tokens += tokens
        self.flops += flops
        for i, amount in enumerate((tokens, slots, filled, flops, sampling)):
            self._window[i] += amount

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what happens inside: evaluation, samples, saving."""
        before = self._clock()
        try:
            yield
        finally:
            self._start += self._clock() - before

    def compiled(self, seconds: Real) -> None:
        """Counts the last `seconds` as the compilation of a program."""
        self.programs += 1
        self.compile_seconds += seconds
        self._start += seconds

    def read(self) -> dict[str, float]:
        """Rates since the last read: `tokens_per_second`, `padding` (0..1), `mfu` where known.

        Of a run that samples `train/seconds` and `train/tokens_per_second` too: the time that is
        left without sampling and rewards.
        """
        elapsed = self.seconds - self._read_seconds
        self._read_seconds += elapsed
        tokens, slots, filled, flops, sampling = self._window
        self._window = [0.0] * 5
        rates = {"tokens_per_second": _rate(tokens, elapsed)}
        if self._samples:
            training = max(elapsed - sampling, 0.0)
            rates |= {
                "train/seconds": training,
                "train/tokens_per_second": _rate(tokens, training),
            }
        if slots:
            rates["padding"] = 1 - filled / slots
        return rates | self._share(flops, elapsed)

    def overall(self) -> dict[str, float]:
        """Rates over all steps: `tokens_per_second`, and `mfu` where known."""
        seconds = self.seconds
        if not self.tokens or seconds <= 0:
            return {}
        return {"tokens_per_second": self.tokens / seconds} | self._share(self.flops, seconds)

    def _share(self, flops: Real, seconds: Real) -> dict[str, float]:
        share = mfu(flops, seconds, self._peak)
        return {} if share is None or not flops else {"mfu": share}


def _rate(amount: Real, seconds: Real) -> float:
    return amount / seconds if seconds > 0 else 0.0
