"""Every method, as a user runs it: from rows to checkpoint, resumed, accumulated, packed."""

import numpy as np
import pytest

from ptjax import loop
from ptjax.algorithms import METHODS
from tests import tiny
from tests.judged import write_judged

pytestmark = pytest.mark.usefixtures("quick_compile")
JUDGED = {name: method for name, method in METHODS.items() if method.data != "sequences"}
OWN = {
    "spin": {"rollout.max_tokens": 8},
    "online_dpo": {"rollout.max_tokens": 8, "rewards": [{"name": "tests.judged.letters"}]},
}
"""What a method cannot do without."""
AT_REFERENCE = {"dpo": np.log(2), "bco": np.log(2), "kto": 0.5, "apo_zero_unpaired": 0.5}
AT_REFERENCE |= {"spin": np.log(2), "online_dpo": np.log(2)}
"""The loss where policy and reference are one."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny.write(tmp_path_factory.mktemp("runs"))
    for kind in {method.data for method in JUDGED.values()}:
        write_judged(folder / f"{kind}.jsonl", kind, 40)
        write_judged(folder / f"{kind}_held_out.jsonl", kind, 8, seed=1)
    return folder


def config(folder, method, **changes):
    kind = METHODS[method].data
    return tiny.tiny_config(
        folder,
        method=method,
        **{
            "data.sources[0].path": str(folder / f"{kind}.jsonl"),
            "data.validation": [{"path": str(folder / f"{kind}_held_out.jsonl")}],
            "data.max_length": 64,
            "data.batch_size": 8,
            "data.packing": False,
            "data.buckets": [64],
            "mesh.fsdp": 1,
            "mesh.data": 1,
            "steps": 4,
            "checkpoint.every": 2,
            "eval.every": 0,
            **OWN.get(method, {}),
            **changes,
        },
    )


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    import jax

    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: list(first))


@pytest.mark.parametrize("method", JUDGED)
def test_a_whole_run(method, folder, tmp_path):
    result = loop.train(config(folder, method), str(tmp_path / "run"), quiet=True)
    assert result.finished
    assert ("ptjax.generate" in result.summary) == (METHODS[method].head == "lm")
    rows = tiny.rows(tmp_path / "run")
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert all(row["accepted"] == 1 and np.isfinite(row["loss"]) for row in steps)
    if method in AT_REFERENCE:
        assert steps[0]["loss"] == pytest.approx(AT_REFERENCE[method], abs=1e-5)
        assert abs(steps[-1]["loss"] - steps[0]["loss"]) > 1e-4
    held_out = [row for row in rows if "eval/loss" in row]
    assert [row["step"] for row in held_out] == [0, 4]
    assert np.isfinite(held_out[-1]["eval/loss"])
