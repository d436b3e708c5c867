"""Runs the mapping of a Grain data set in other processes."""

from typing import Any


def in_workers(stream: Any, workers: int, *, buffer: int) -> Any:
    """A Grain `IterDataset` whose elements are made by so many processes, in the same order.

    Args:
      stream: the data set.
      workers: processes; 0 leaves the data set as it is.
      buffer: elements that each makes ahead.

    """
    if not workers:
        return stream
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain reads absl's flags, which nobody else here parses.
        flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=buffer)
    return stream.mp_prefetch(options)
