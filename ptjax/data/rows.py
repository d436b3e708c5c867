"""What a source of rows is, and what stands in the place of a row that cannot be read."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from ptjax.errors import UserError

Row = dict[str, Any]


class BadRow(NamedTuple):
    """A row that could not be read or converted."""

    where: str
    """File and line, or file and row."""
    reason: str
    """What is wrong with it; alike for alike defects, so that they can be counted."""
    detail: str = ""
    """What is special about this one."""

    def __str__(self):
        return f"{self.where}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


def no_rows(path: str, what: str) -> UserError:
    """The mistake of a source that holds nothing."""
    return UserError(f"{path}: {what}; give one with rows, of the forms in docs/data.md")


@runtime_checkable
class Rows(Protocol):
    """Random access to rows, many at a time. Can be sent to another process."""

    def __len__(self) -> int:
        """Rows, bad ones included."""
        ...

    def read(self, start: int, stop: int) -> list[Row | BadRow]:
        """The rows from `start` up to `stop`."""
        ...

    def where(self, index: int) -> str:
        """File and line of a row, for messages."""
        ...

    def fingerprint(self) -> list[Any]:
        """JSON-able; another value whenever the rows may have changed."""
        ...

    def content(self) -> str:
        """A few letters that are alike wherever the rows are, on whatever machine."""
        ...
