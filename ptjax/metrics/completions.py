"""What a policy answered in training: a Parquet file a rollout, and a few answers to look at."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ptjax.errors import UserError

FOLDER = "completions"
_SHOWN = 4
_CHARACTERS = 160

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
    mask, weights = np.asarray(columns["mask"]), np.asarray(columns["weights"])
    trained = (weights > 0) & (mask > 0).any(-1)
    means = None
    if "advantages" in columns:
        means = (np.asarray(columns["advantages"]) * mask).sum(-1) / np.maximum(mask.sum(-1), 1)
    for entry in rows:
        place = (entry["row"], entry["answer"]) if entry["row"] is not None else None
        entry["trained"] = place is not None and bool(trained[place])
        if means is not None:
            entry["advantage"] = math.nan if place is None else float(means[place])
    return rows


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

    shown = extremes(rows)
    parts = [name for name in shown[0] if name.startswith("reward/")]
    table = Table(title=f"answers of step {step}", title_justify="left", show_lines=True)
    for name in ("prompt", "completion"):
        table.add_column(name, ratio=1, overflow="fold")
    names = (*(parts if len(parts) > 1 else ()), "reward", "advantage")
    for name in names:
        table.add_column(name.removeprefix("reward/"), justify="right")
    for row in shown:
        numbers = [row.get(name, math.nan) for name in names]
        cells = [_short(row["prompt"]), _short(row["completion"])]
        table.add_row(*cells, *("-" if math.isnan(x) else f"{x:.2f}" for x in numbers))
    return table


def as_markdown(rows: Rows) -> str:
    """The same for TensorBoard."""
    lines = ["| prompt | completion | reward | advantage |", "|---|---|---|---|"]
    for row in extremes(rows):
        texts = [_short(row[name]).replace("|", "\\|") for name in ("prompt", "completion")]
        numbers = [f"{row.get(name, math.nan):.2f}" for name in ("reward", "advantage")]
        lines.append("| " + " | ".join([*texts, *numbers]) + " |")
    return "\n".join(lines)


def _short(text: str) -> str:
    """One line, its middle left out where it is long."""
    line = " ".join(text.split())
    if len(line) <= _CHARACTERS:
        return line
    return f"{line[: _CHARACTERS // 2]} ... {line[-_CHARACTERS // 2 :]}"
