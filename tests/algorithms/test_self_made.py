"""Runs that make their own pairs: they learn, and they go on where they were stopped."""

import jax
import pytest

from ptjax import loop
from ptjax.data.iterate import TrainIterator
from tests import tiny
from tests.judged import write_judged

KINDS = {"spin": "answers", "online_dpo": "prompts"}
NEXT = TrainIterator.__next__


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny.write(tmp_path_factory.mktemp("self_made"))
    for kind in KINDS.values():
        write_judged(folder / f"{kind}.jsonl", kind, 40)
        write_judged(folder / f"{kind}_held_out.jsonl", kind, 8, seed=1)
    return folder


@pytest.fixture
def one_device(monkeypatch):
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: list(first))


def config(folder, method, **changes):
    kind = KINDS[method]
    return tiny.tiny_config(
        folder,
        method=method,
        **{
            "data.sources[0].path": str(folder / f"{kind}.jsonl"),
            "data.validation": None,
            "data.batch_size": 8,
            "data.packing": False,
            "eval.every": 0,
            "rollout.max_tokens": 8,
            **({"rewards": ["tests.judged.lower"]} if method == "online_dpo" else {}),
            **changes,
        },
    )


@pytest.mark.parametrize("method", KINDS)
def test_a_stopped_run_goes_on_bit_for_bit(method, folder, tmp_path, monkeypatch, one_device):
    asked = config(folder, method, **{"mesh.fsdp": 1, "hparams.sync_every": 2, "steps": 4})
    monkeypatch.setattr(loop, "prepare", tiny.Prepared())
    whole = loop.train(asked, str(tmp_path / "whole"), quiet=True)
    assert whole.finished

    class PowerCut(Exception):
        pass

    def cut(batches):
        if batches.get_state()["step"] == 3:  # after the save of step 2, in step 4
            raise PowerCut
        return NEXT(batches)

    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(TrainIterator, "__next__", cut)
        loop.train(asked, str(tmp_path / "cut"), quiet=True)
    assert tiny.saved(tmp_path / "cut")[0] == 2
    loop.train(asked, str(tmp_path / "cut"), quiet=True)
    assert tiny.saved(tmp_path / "cut") == tiny.saved(tmp_path / "whole")
    here, there = (tiny.rows(path) for path in (tmp_path / "whole", tmp_path / "cut"))
    assert here == there


def test_online_dpo_earns_the_reward(folder, tmp_path, one_device):
    asked = config(folder, "online_dpo", **{"mesh.fsdp": 1, "steps": 20, "checkpoint.every": 0})
    asked.data.validation = [{"path": str(folder / "prompts_held_out.jsonl")}]
    loop.train(asked, str(tmp_path / "run"), quiet=True)
    held_out = [
        row["eval/rollout/reward"] for row in tiny.rows(tmp_path / "run") if "eval/loss" in row
    ]
    assert held_out[-1] > held_out[0] + 0.1


@pytest.mark.parametrize("method", KINDS)
def test_a_mesh_of_many_devices(method, folder, tmp_path):
    asked = config(folder, method, **{"mesh.data": 2, "mesh.fsdp": 4, "steps": 1, "accumulate": 1})
    loop.train(asked, str(tmp_path / "run"), quiet=True)
    (row,) = [row for row in tiny.rows(tmp_path / "run") if "loss" in row]
    assert row["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert row["rollout/tokens"] > 0
