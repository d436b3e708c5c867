"""Every method, as a user runs it: from rows to checkpoint, resumed, accumulated, packed."""

import numpy as np
import pytest

from ptjax import loop
from ptjax.algorithms import METHODS
from ptjax.algorithms.online import PRESETS
from tests import tiny
from tests.full import FULL
from tests.judged import write_judged, write_prompts

ONLINE = ("grpo", "dapo", "remax", "ppo")
SAME = PRESETS.keys() - {*ONLINE}
"""Other rows of settings of a method that is run here."""
ALIKE = {
    "simpo",
    "cpo",
    "alphapo",
    "apo_zero_unpaired",
    "reward_regression",
    "outcome_reward",
    "dro",
    "gkd_mixed",
    "gkd_on_policy",
}
"""The same of another loss: `PTJAX_FULL=1` runs them."""
RUN = [name for name in METHODS if name != "sft" and name not in SAME | (set() if FULL else ALIKE)]
SAMPLED = {"rollout.max_tokens": 8, "data.batch_size": 4}
BY_REWARD = {**SAMPLED, "rewards": [{"name": "tests.judged.letters"}]}
TAUGHT = {"reference.source": "teacher"}
OWN = {
    "spin": SAMPLED,
    "online_dpo": BY_REWARD,
    **dict.fromkeys((*ONLINE, "raft"), {**BY_REWARD, "rollout.n": 2}),
    "gkd": TAUGHT,
    **dict.fromkeys(("gkd_mixed", "gkd_on_policy"), SAMPLED | TAUGHT),
    "on_policy_distillation": SAMPLED | TAUGHT,
}
"""What a method cannot do without."""
AT_REFERENCE = {"dpo": np.log(2), "bco": np.log(2), "kto": 0.5, "apo_zero_unpaired": 0.5}
AT_REFERENCE |= {"spin": np.log(2), "online_dpo": np.log(2)}
"""The loss where policy and reference are one."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny.write(tmp_path_factory.mktemp("runs"))
    tiny.write_model(folder / "teacher", seed=1, intermediate_size=48)
    write_prompts(folder / "prompts.jsonl", 40)
    write_prompts(folder / "prompts_held_out.jsonl", 8)
    for kind in {METHODS[name].data for name in RUN} - {"sequences", "prompts"}:
        write_judged(folder / f"{kind}.jsonl", kind, 40)
        write_judged(folder / f"{kind}_held_out.jsonl", kind, 8, seed=1)
    return folder


def config(folder, method, **changes):
    kind = METHODS[method].data
    own = dict(OWN.get(method, {}))
    if "reference.source" in own:
        own["reference.source"] = str(folder / own["reference.source"])
    files = {
        "data.sources[0].path": str(folder / f"{kind}.jsonl"),
        "data.validation": [{"path": str(folder / f"{kind}_held_out.jsonl")}],
    }
    return tiny.tiny_config(
        folder,
        method=method,
        **{
            **(files if kind != "sequences" else {}),
            "data.max_length": 64,
            "data.batch_size": 8,
            "data.packing": False,
            "data.buckets": [64],
            "mesh.fsdp": 1,
            "mesh.data": 1,
            "steps": 4,
            "checkpoint.every": 2,
            "eval.every": 0,
            **own,
            **changes,
        },
    )


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    import jax

    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: list(first))


@pytest.mark.parametrize("method", RUN)
def test_a_whole_run(method, folder, tmp_path):
    result = loop.train(config(folder, method), str(tmp_path / "run"), quiet=True)
    assert result.finished
    assert ("ptjax.generate" in result.summary) == (METHODS[method].head != "score")
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
    if METHODS[method].data == "prompts":
        assert all(0 < row["rollout/tokens"] <= 8 for row in steps)
        assert 0 < held_out[-1]["eval/rollout/tokens"] <= 8
    if method in ONLINE:
        assert all(row["grad_norm"] > 0 and row["rollout/reward"] > 0 for row in steps)
        assert held_out[-1]["eval/rollout/reward"] > 0
        assert abs(steps[0]["sampler/difference"]) < 1e-4


def test_a_method_that_is_not_run_differs_by_its_settings_alone():
    for name in PRESETS.keys() - {*ONLINE}:
        one, other = METHODS[name], METHODS["grpo"]
        assert [s.name for s in one.stages] == [s.name for s in other.stages]
        assert one.loss.func is getattr(other.loss, "func", other.loss)
