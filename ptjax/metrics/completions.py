"""What a policy answered in training: a Parquet file a rollout, and a few answers to look at."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ptjax.errors import UserError
from ptjax.sharding import fetch

FOLDER = "completions"
_SHOWN = 4
_CHARACTERS = 160

Rows = list[dict[str, Any]]


def with_advantages(table: Sequence[Mapping[str, Any]], columns: Mapping[str, Any]) -> Rows:
    """The rows, each with the advantage of its answer: the mean over its trained tokens.

    Args:
      table: rows with `row` and `answer`, the places in the batch.
      columns: `mask`, and `advantages` where the method has them.
    """
    rows = [dict(entry) for entry in table]
    if not rows or "advantages" not in columns:
        return rows
    means = fetch(_means(columns["advantages"], columns["mask"]))
    for entry in rows:
        entry["advantage"] = float(means[entry["row"], entry["answer"]])
    return rows


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
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), part)
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
