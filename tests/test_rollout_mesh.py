"""GRPO where rows are cut along their length = on a mesh that cuts the batch alone."""

import json

import numpy as np
import pytest

from ptjax.loop import train
from tests import tiny
from tests.full import only_in_full

CLOCK = {"rollout/seconds", "rollout/tokens_per_second", "reward/seconds"}
LAST, KEPT = 3, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny.write(tmp_path_factory.mktemp("rollout_mesh"), vocab_size=384)
    lines = [{"prompt": "ship " * (1 + i % 3), "letter": "aeiou"[i % 5]} for i in range(32)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def run(folder, name, steps, **mesh):
    config = tiny.tiny_config(
        folder,
        method="grpo",
        steps=steps,
        rewards=["tests.judged.letters"],
        **{
            "hparams.beta": 0.1,
            "rollout.n": 2,
            "rollout.max_tokens": 6,
            "data.sources[0].path": str(folder / "prompts.jsonl"),
            "data.packing": False,
            "data.batch_size": 8,
            "data.validation": None,
            "checkpoint.every": KEPT,
            "eval.every": 0,
            "optim.warmup": 0,
            "optim.schedule": "constant",
            **{f"mesh.{axis}": size for axis, size in mesh.items()},
        },
    )
    train(config, str(folder / name), quiet=True)
    return tiny.rows(folder / name)


@only_in_full
def test_a_run_and_one_that_goes_on_where_the_other_mesh_left_off(folder):
    wanted = run(folder, "batch", LAST)
    cut = run(folder, "cut", LAST, sequence=2, fsdp=4)
    run(folder, "moved", KEPT)
    moved = run(folder, "moved", LAST, sequence=2, fsdp=4)
    assert wanted[-1]["grad_norm"] > 0 and wanted[0]["loss"] != wanted[-1]["loss"]
    for rows in (cut, moved):
        assert [row["step"] for row in rows] == [row["step"] for row in wanted]
        for row, expected in zip(rows, wanted, strict=True):
            for key in expected.keys() - CLOCK:
                np.testing.assert_allclose(
                    row[key], expected[key], rtol=5e-5, atol=1e-6, err_msg=f"{row['step']} {key}"
                )
