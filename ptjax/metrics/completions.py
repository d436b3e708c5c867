"""What a policy answered in training: a Parquet file a rollout, and a few answers to look at."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ptjax.errors import UserError
from ptjax.sharding import fetch

FOLDER = "completions"
_SHOWN = 4
_CHARACTERS = 160
_TEXTS = ("prompt", "completion")

Rows = list[dict[str, Any]]


def with_advantages(table: Sequence[Mapping[str, Any]], columns: Mapping[str, Any]) -> Rows:
    """The rows, each with whether its answer is trained on, and with its advantage.

    That is the mean over the answer's trained tokens; NaN where it is not in the batch.

    Args:
      table: rows with `row` and `answer`, the places in the batch; `row` is None for what was
        sampled and left out of it.
      columns: `mask`, `weights`, and `advantages` where the method has them.
    """
    rows = [dict(entry) for entry in table]
    if not rows:
        return rows
    trained = fetch(_trained(columns["weights"], columns["mask"]))
    means = None
    if "advantages" in columns:
        means = fetch(_means(columns["advantages"], columns["mask"]))
    for entry in rows:
        place = (entry["row"], entry["answer"]) if entry["row"] is not None else None
        entry["trained"] = place is not None and bool(trained[place])
        if means is not None:
            entry["advantage"] = math.nan if place is None else float(means[place])
    return rows


@jax.jit
def _trained(weights: Float[Array, "B N"], mask: Float[Array, "B N T"]) -> Bool[Array, "B N"]:
    return (weights > 0) & (mask > 0).any(-1)


@jax.jit
def _means(advantages: Float[Array, "B N T"], mask: Float[Array, "B N T"]) -> Float[Array, "B N"]:
    return jnp.sum(advantages * mask, -1) / jnp.maximum(jnp.sum(mask, -1), 1)


def write_completions(folder: Path, step: int, rows: Rows) -> Path:
    """Writes a rollout's answers to `completions/step_000012.parquet`; a kill leaves none or all.

    Raises:
      OSError: the folder cannot be written.
    """
    import pyarrow
    import pyarrow.parquet

    path = folder / FOLDER / f"step_{step:06}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    table = pyarrow.Table.from_pylist(rows)
    fields = [  # `row` has its type where no group is in the batch too: files are read together
        field.with_type(pyarrow.int64()) if pyarrow.types.is_null(field.type) else field
        for field in table.schema
    ]
    pyarrow.parquet.write_table(table.cast(pyarrow.schema(fields)), part)
    part.replace(path)
    return path


def read_completions(workdir: str | Path, step: int | None = None) -> Rows:
    """A rollout's answers, as the run kept them.

    Args:
      workdir: of the run, a folder.
      step: None for the newest.

    Raises:
      UserError: there is no such table.
    """
    import pyarrow.parquet

    folder = Path(workdir) / FOLDER
    path = folder / f"step_{step:06}.parquet" if step is not None else None
    path = path or max(folder.glob("step_*.parquet"), default=folder / "step_*.parquet")
    if not path.is_file():
        raise UserError(f"{path}: no table of completions; see config.log.completions")
    return pyarrow.parquet.read_table(path).to_pylist()


def extremes(rows: Rows) -> Rows:
    """The best and the worst answers by reward, best first; those without a reward last."""
    order = sorted(rows, key=lambda row: -row["reward"] if math.isfinite(row["reward"]) else 1e30)
    if len(order) <= _SHOWN:
        return order
    return [*order[: _SHOWN // 2], *order[-_SHOWN // 2 :]]


def as_table(step: int, rows: Rows) -> Any:
    """A rich table of the extremes: prompt, answer, each reward, advantage."""
    from rich.table import Table

    heads, cells = _shown(rows)
    table = Table(title=f"answers of step {step}", title_justify="left", show_lines=True)
    for name in heads:
        wide = name in _TEXTS
        table.add_column(
            name,
            ratio=1 if wide else None,
            overflow="fold" if wide else "ellipsis",
            justify="left" if wide else "right",
        )
    for row in cells:
        table.add_row(*row)
    return table


def as_markdown(rows: Rows) -> str:
    """The same for TensorBoard."""
    heads, cells = _shown(rows)
    lines = [heads, ["---"] * len(heads), *([x.replace("|", "\\|") for x in row] for row in cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(rows: Rows) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the extremes; one reward alone is its own sum."""
    shown = extremes(rows)
    parts = [name for name in shown[0] if name.startswith("reward/")]
    numbers = [*(parts if len(parts) > 1 else ()), "reward", "advantage"]
    cells = [
        [_short(row[name]) for name in _TEXTS] + [_number(row.get(name)) for name in numbers]
        for row in shown
    ]
    return [*_TEXTS, *(name.removeprefix("reward/") for name in numbers)], cells


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"


def _short(text: str) -> str:
    """One line, its middle left out where it is long."""
    line = " ".join(text.split())
    if len(line) <= _CHARACTERS:
        return line
    return f"{line[: _CHARACTERS // 2]} ... {line[-_CHARACTERS // 2 :]}"
