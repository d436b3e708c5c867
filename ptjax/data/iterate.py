"""Iterators over batches whose position is one number."""

from collections.abc import Iterator
from typing import Any

from ptjax.data.columns import Collate, HostBatch
from ptjax.data.schedule import Schedule
from ptjax.data.workers import in_workers
from ptjax.errors import UserError


class TrainIterator:
    """A run's batches, one after the other, from any step on.

    The state is the number of steps taken, the same on every host and for any number of hosts,
    shards or workers: setting it is all that a resumed run needs.

    Args:
      schedule: the run's steps.
      collate: makes batches of them.
      workers: processes that collate; 0: threads of this one.

    """

    def __init__(self, schedule: Schedule, collate: Collate, *, workers: int = 0):
        self._schedule, self._collate, self._workers = schedule, collate, workers
        self._step = 0
        self._stream: Iterator[HostBatch] | None = None

    def __iter__(self) -> "TrainIterator":
        return self

    def __next__(self) -> HostBatch:
        if self._stream is None:
            self._stream = iter(self._open())
        batch = next(self._stream)
        self._step += 1
        return batch

    def _open(self) -> Any:
        import grain

        steps = grain.MapDataset.source(self._schedule)[self._step :].map(self._collate)
        ahead = 1 if self._workers else 4
        stream = steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead))
        return in_workers(stream, self._workers, buffer=4)

    def get_state(self) -> dict[str, Any]:
        """Steps taken, and what data they were of."""
        return {"step": self._step, "data": self._schedule.identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where another iterator stood.

        Raises:
          UserError: that one read other data, or in another order.

        """
        if state["data"] != self._schedule.identity:
            raise UserError(
                "config.data: the data, their order or the tokenizer are not those of the run to "
                "resume (or, on another mesh, packed rows came out longer or shorter: set "
                "config.data.row_length); use another workdir"
            )
        self.close()
        self._step = int(state["step"])

    def close(self) -> None:
        """Ends the threads or processes that read ahead."""
        stream, self._stream = self._stream, None
        close = getattr(stream, "close", None)
        if close is not None:
            close()


class Batches:
    """A finite list of batches, made when asked for."""

    def __init__(self, schedule: Schedule, collate: Collate):
        self._schedule, self._collate = schedule, collate

    def __len__(self) -> int:
        return self._schedule.epoch_steps[0]

    def __getitem__(self, index: int) -> HostBatch:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._collate(self._schedule[index % len(self)])

    def __iter__(self) -> Iterator[HostBatch]:
        return (self[index] for index in range(len(self)))
