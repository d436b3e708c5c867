"""What a program may use."""

import dataclasses
from dataclasses import dataclass

from ptjax.errors import UserError

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """The room of one test of one program, and all that it starts.

    Attributes:
      cpu_seconds: processor time of all its processes together.
      wall_seconds: time on the clock, sleep and waiting included.
      memory_mb: MiB of memory of its own, of all its processes together; also the address space of
        each.
      processes: processes and threads at one time.
      open_files: file descriptors of a process.
      disk_mb: MiB of its home, which is in memory; also the size of one file.
      files: files and folders in its home.
      output_kb: KiB on standard output, on standard error, and of one result.
    """

    cpu_seconds: int | float = 5.0
    wall_seconds: int | float = 10.0
    memory_mb: int | float = 512
    processes: int = 32
    open_files: int = 64
    disk_mb: int | float = 32
    files: int = 4096
    output_kb: int | float = 1024

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise UserError(f"code: limit {name} = {value!r}; it must be a number above 0")
