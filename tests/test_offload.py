"""Runs with adapters on a base whose kernels lie in the host's memory: the same bits, less room."""

import jax
import numpy as np
import pytest

import ptjax
from ptjax import sharding
from ptjax.config import lora
from ptjax.errors import UserError
from ptjax.export import export
from ptjax.loop import train
from ptjax.plan.shapes import job
from ptjax.prepare import prepare
from tests import tiny
from tests.full import only_in_full


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("offload"))


def config(folder, **changes):
    made = tiny.tiny_config(folder, steps=2, **{"model.remat": "full", **changes})
    made.lora = lora(rank=4)
    made.data.validation = None
    return made


@pytest.mark.parametrize("base", ["none", pytest.param("nf4", marks=only_in_full)])
def test_it_trains_writes_and_exports_as_without(folder, tmp_path, base):
    changes = {"model.base": base, "samples.prompts": ["what is blue"], "samples.max_tokens": 4}
    for name, offload in (("near", False), ("away", True)):
        made = config(folder, **changes, **{"model.offload": offload})
        made.lora.targets = r"layers\.(q|up)"  # others are exported as they are kept
        result = train(made, str(tmp_path / name), quiet=True)
        export(result.bundle, tmp_path / f"{name} out")
    near, away = (tiny.rows(tmp_path / name) for name in ("near", "away"))
    assert [row["loss"] for row in near] == [row["loss"] for row in away]
    said = [tiny.rows(tmp_path / name, "samples.jsonl") for name in ("near", "away")]
    assert [row["completion"] for row in said[0]] == [row["completion"] for row in said[1]]
    merged = [ptjax.load(str(tmp_path / f"{name} out")).params for name in ("near", "away")]
    jax.tree.map(np.testing.assert_array_equal, *merged)


def places(params):
    """Names of leaves of which something lies in the host's memory."""
    return {
        name
        for name, leaf in params.items()
        if any(sharding.is_on_host(part) for part in jax.tree.leaves(leaf))
    }


KERNELS = {f"layers.{name}" for name in ("q", "k", "v", "o", "gate", "up", "down")}


@pytest.mark.parametrize("method", ["sft", "ppo"])
def test_kernels_lie_where_the_plan_has_them(folder, method):
    """A critic's too."""
    made = config(folder, **{"model.offload": True, "method": method})
    wanted = set(KERNELS)
    if method == "ppo":
        prompts = folder / "prompts.jsonl"
        prompts.write_text('{"prompt": "what is blue"}\n' * 16)
        made.data.sources = [{"path": str(prompts)}]
        made.data.packing, made.data.batch_size = False, 8
        made.rollout.max_tokens = 8
        made.rewards = [{"name": "length", "target": 3}]
        made.hparams.critic = "separate"
        wanted |= {f"critic.{name}" for name in KERNELS}
    run = prepare(made)
    assert places(run.state.frozen) == wanted and not places(run.state.params)
    planned = job(made, run.mesh)
    assert places(planned.state.frozen) == wanted and not places(planned.state.params)


def test_what_a_run_left_is_loaded_so(folder, tmp_path):
    train(config(folder), str(tmp_path / "run"), quiet=True)
    assert places(ptjax.load(str(tmp_path / "run"), offload=True).params) == KERNELS


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("lora", None, "adapters alone can train on them: set config.lora"),
        ("model.remat", "none", "config.model.remat = 'none': every layer that was brought"),
        ("trainable", r".*lora.*|layers\.q", "matches layers.q, which config.model.offload"),
    ],
)
def test_what_cannot_be_is_refused(folder, path, value, message):
    made = config(folder, **{"model.offload": True})
    with made.unlocked():
        made.update_from_flattened_dict({path: value})
    with pytest.raises(UserError, match=message):
        prepare(made)
