"""Value heads and critics: how they begin, that a run keeps them, that an export has none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ptjax
from ptjax.algorithms.base import Algorithm
from ptjax.errors import UserError
from ptjax.export import export
from ptjax.models.adapt import adapt
from ptjax.models.bundle import policy
from ptjax.models.families import CRITIC
from ptjax.types import Mean
from ptjax.workdir import load, load_workdir
from tests.folders import files, write_model
from tests.tiny import tiny_config, write
from tests.tiny import write_model as write_tiny


def both(outputs, batch):
    """Log-probs and values, each to be 1."""
    error = (outputs.values - 1) ** 2 + (outputs.logps - 1) ** 2
    return Mean.of(error, batch["mask"]), {}


ACTOR_CRITIC = Algorithm(both, needs=("logps", "values"), head="lm_critic")


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    """An untied language model."""
    folder = tmp_path_factory.mktemp("lm") / "lm"
    write_model(folder, "llama3", "bfloat16")
    return str(folder)


@pytest.mark.parametrize("head", ["lm_value", "lm_critic"])
def test_values_begin_at_zero_beside_the_same_policy(lm, head, tmp_path):
    plain = load(lm, param_dtype="bfloat16")
    bundle = load(lm, param_dtype="bfloat16", head=head)
    assert bundle.model.head == head
    assert bundle.params.keys() == bundle.model.table.keys()
    scalar = bundle.params["value" if head == "lm_value" else "critic.score"]
    assert scalar.dtype == jnp.float32 and scalar.shape == (48, 1) and not scalar.any()
    for name, leaf in plain.params.items():
        np.testing.assert_array_equal(bundle.params[name], leaf)
    export(bundle, tmp_path / "out")
    export(plain, tmp_path / "plain")
    assert files(tmp_path / "out") == files(tmp_path / "plain")
    assert policy(bundle).model == plain.model


def test_a_critic_begins_as_the_policy_in_memory_of_its_own(lm):
    params = load(lm, head="lm_critic").params
    assert "critic.embed" in params and "critic.head" not in params
    for name, leaf in params.items():
        if name.startswith(CRITIC) and name != "critic.score":
            own = params[name.removeprefix(CRITIC)]
            np.testing.assert_array_equal(leaf, own)
            assert leaf.unsafe_buffer_pointer() != own.unsafe_buffer_pointer()


def test_a_critic_begins_as_a_reward_model_with_its_score(lm, tmp_path):
    reward = load(lm, head="score", seed=4)
    export(reward, tmp_path / "rm")
    params = load(lm, head="lm_critic", critic=str(tmp_path / "rm")).params
    np.testing.assert_array_equal(params["critic.score"], reward.params["score"])
    np.testing.assert_array_equal(params["critic.layers.q"], reward.params["layers.q"])


def test_new_tokens_grow_the_critic_too(lm):
    bundle = load(lm, head="lm_critic", critic=lm, special_tokens=("<new>",))
    assert bundle.params["critic.embed"].shape == bundle.params["embed"].shape


def test_critics_that_cannot_be(lm, tmp_path):
    other = str(write_tiny(tmp_path / "tiny"))
    with pytest.raises(UserError, match="tiny cannot stand beside .*lm: its layers or its vocab"):
        load(lm, head="lm_critic", critic=other)
    with pytest.raises(UserError, match="the model has head 'lm_value' and no critic"):
        load(lm, head="lm_value", critic=lm)
    export(load(lm, head="score"), tmp_path / "rm")
    with pytest.raises(UserError, match="rm is a reward model"):
        load(str(tmp_path / "rm"), head="lm_value")


def test_adapters_of_a_folder_stand_beside_new_ones_of_the_critic(lm, tmp_path):
    mesh = ptjax.sharding.make_mesh({}, jax.devices()[:1])
    bundle, _ = adapt(load(lm), {"rank": 2, "alpha": 4.0}, seed=0, mesh=mesh)
    export(bundle, tmp_path / "adapter", kind="adapter")
    again, rows = adapt(
        load(lm, head="lm_critic"), {"adapter": str(tmp_path / "adapter")}, seed=1, mesh=mesh
    )
    assert again.params.keys() == rows.keys()
    np.testing.assert_array_equal(again.params["layers.q.lora_a"], bundle.params["layers.q.lora_a"])
    assert again.params["critic.layers.q.lora_a"].shape == again.params["layers.q.lora_a"].shape
    export(again, tmp_path / "out", kind="adapter")
    wanted = files(tmp_path / "adapter")["adapter_model.safetensors"]
    assert files(tmp_path / "out")["adapter_model.safetensors"] == wanted


def test_a_run_keeps_what_its_export_leaves_out(tmp_path, monkeypatch):
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: list(first))
    config = tiny_config(write(tmp_path), steps=2, method="tests.models.test_critic.ACTOR_CRITIC")
    config.data.validation, config.mesh.fsdp = None, 1
    result = ptjax.train(config, str(tmp_path / "run"), quiet=True)
    trained = np.asarray(result.bundle.params["critic.score"])
    assert np.abs(trained).max() > 0
    found = load_workdir(tmp_path / "run")
    assert found.model.head == "lm_critic"
    np.testing.assert_array_equal(found.params["critic.score"], trained)
    again = load(str(tmp_path / "run"), head="lm_critic")
    np.testing.assert_array_equal(again.params["critic.score"], trained)
    assert again.params.keys() - load(str(tmp_path / "run"), head="lm").params.keys() == {
        name for name in again.params if name.startswith(CRITIC)
    }
    export(str(tmp_path / "run"), tmp_path / "out")
    exported = load(str(tmp_path / "out"))
    assert exported.model.head == "lm" and "critic.score" not in exported.params
    np.testing.assert_array_equal(exported.params["layers.q"], found.params["layers.q"])
