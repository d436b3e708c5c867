"""Tables of what a policy answered: whole files, the right advantages, the extremes shown."""

import math

import numpy as np
import pyarrow.parquet
import pytest

from ptjax.errors import UserError
from ptjax.metrics import Metrics
from ptjax.metrics.completions import (
    as_markdown,
    as_table,
    extremes,
    read_completions,
    with_advantages,
    write_completions,
)


def rows(*rewards):
    return [
        {"prompt": f"p{i}", "completion": f"a|{i}\nb", "reward": r, "reward/x": r, "row": i // 2}
        | {"answer": i % 2}
        for i, r in enumerate(rewards)
    ]


def test_an_answer_s_advantage_is_the_mean_over_its_trained_tokens():
    mask = np.array([[[0, 1, 1, 0], [0, 0, 1, 0]], [[0, 0, 0, 0], [1, 1, 1, 1]]], np.float32)
    advantages = np.array([[[9, 1, 3, 9], [9, 9, -2, 9]], [[9, 9, 9, 9], [1, 2, 3, 4]]], np.float32)
    given = rows(1.0, 0.0, 0.0, 1.0)
    columns = {"mask": mask, "weights": np.ones((2, 2), np.float32)}
    found = with_advantages(given, columns | {"advantages": advantages})
    assert [row["advantage"] for row in found] == [2, -2, 0, 2.5]
    assert not any("advantage" in row for row in [*given, *with_advantages(given, columns)])


def test_what_is_not_trained_on_says_so(tmp_path):
    """A group that was left out has no row; the third answer nothing trained, the fourth no weight.

    Tables of several steps are read as one, also where one of them is of such groups alone.
    """
    mask = np.array([[[0, 1], [0, 1]], [[0, 0], [0, 1]]], np.float32)
    columns = {"mask": mask, "weights": np.array([[1, 1], [1, 0]], np.float32), "advantages": mask}
    left_out = [row | {"row": None} for row in rows(0.0, 0.0)]
    found = with_advantages([*left_out, *rows(1.0, 0.0, 1.0, math.nan)], columns)
    assert [row["trained"] for row in found] == [False, False, True, True, False, False]
    assert [math.isnan(row["advantage"]) for row in found] == [True, True, *[False] * 4]
    path = write_completions(tmp_path, 1, with_advantages(left_out, columns))
    write_completions(tmp_path, 2, found)
    table = pyarrow.parquet.read_table(path.parent).to_pylist()
    assert [row["row"] for row in table] == [None, None, None, None, 0, 0, 1, 1]
    assert as_markdown(found[:2]).splitlines()[-1].endswith("| - |")


def test_a_rollout_is_one_file_that_is_written_whole(tmp_path, monkeypatch):
    path = write_completions(tmp_path, 12, rows(1.0, math.nan))
    assert path == tmp_path / "completions" / "step_000012.parquet"
    table = pyarrow.parquet.read_table(path).to_pylist()
    assert [row["completion"] for row in table] == ["a|0\nb", "a|1\nb"]
    assert table[0]["reward"] == 1 and math.isnan(table[1]["reward"])
    assert [row["completion"] for row in read_completions(tmp_path)] == ["a|0\nb", "a|1\nb"]
    write_completions(tmp_path, 120, rows(3.0))
    assert [row["reward"] for row in read_completions(tmp_path)] == [3.0]
    assert len(read_completions(tmp_path, step=12)) == 2
    (path.parent / "step_000120.parquet").unlink()
    with pytest.raises(UserError, match="step_000013.parquet: no table of completions"):
        read_completions(tmp_path, step=13)
    assert write_completions(tmp_path, 12, rows(2.0)) == path
    assert pyarrow.parquet.read_table(path).num_rows == 1

    def cut(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pyarrow.parquet, "write_table", cut)
    with pytest.raises(KeyboardInterrupt):
        write_completions(tmp_path, 12, rows(3.0))
    assert pyarrow.parquet.read_table(path).to_pylist()[0]["reward"] == 2
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_best_and_the_worst_are_shown():
    found = extremes(rows(0.5, 3.0, math.nan, -1.0, 2.0, 0.0))
    assert [row["prompt"] for row in found] == ["p1", "p4", "p3", "p2"]
    assert [row["prompt"] for row in extremes(rows(0.0, 1.0))] == ["p1", "p0"]


def test_the_terminal_and_tensorboard_show_each_reward():
    """One reward alone is the sum; what abstained is a dash."""
    alone = as_markdown(rows(0.0, 1.0)).splitlines()
    assert alone[0] == "| prompt | completion | reward | advantage |" and len(alone) == 4
    assert alone[2] == r"| p1 | a\|1 b | 1.00 | - |"
    several = [row | {"reward/y": math.nan, "advantage": -0.5} for row in rows(1.0)]
    assert as_markdown(several).splitlines() == [
        "| prompt | completion | x | y | reward | advantage |",
        "| --- | --- | --- | --- | --- | --- |",
        r"| p0 | a\|0 b | 1.00 | - | 1.00 | -0.50 |",
    ]
    table = as_table(3, several)
    assert [column.header for column in table.columns] == [
        "prompt",
        "completion",
        "x",
        "y",
        "reward",
        "advantage",
    ]
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells[2:] == ["1.00", "-", "1.00", "-0.50"]


def test_a_run_s_metrics_keep_the_table_and_nothing_of_none(tmp_path):
    with Metrics(tmp_path, tensorboard=False) as metrics:
        metrics.completions(3, [])
        assert not (tmp_path / "completions").exists()
        metrics.completions(3, rows(1.0))
    assert [p.name for p in (tmp_path / "completions").iterdir()] == ["step_000003.parquet"]
