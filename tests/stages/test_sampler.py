"""A sampler that lags behind: whose parameters it has, and when it gets new ones."""

import jax.numpy as jnp
import pytest

from ptjax import loop, sharding
from ptjax.algorithms import METHODS
from ptjax.errors import UserError
from ptjax.stages.base import Context
from ptjax.stages.sampler import sampled_by, sampler
from tests import tiny
from tests.judged import write_prompts


def context(step, trained, carry, *, training=True):
    def nothing(*_, **__):
        raise AssertionError("it computes nothing")

    return Context(
        step=step,
        training=training,
        trained={"w": jnp.float32(trained)},
        policy=nothing,
        reference=nothing,
        model=nothing,
        mesh=sharding.make_mesh({"data": -1}),
        carry=carry,
    )


def test_it_gets_the_policys_parameters_after_so_many_updates():
    carry = {"sampler": sampler.begin({"w": jnp.float32(0)})}
    seen = []
    for step in range(0, 14, 2):  # two updates a rollout
        ctx = context(step, step, carry)
        _, carry["sampler"] = sampler.run(ctx, {}, carry["sampler"], sampler_every=5)
        seen.append((float(sampled_by(ctx)["w"]), ctx.logged["rollout/staleness"]))
    assert seen == [(0, 0), (0, 2), (0, 4), (6, 0), (6, 2), (6, 4), (12, 0)]


def test_held_out_prompts_are_answered_by_the_policy_itself():
    carry = {"sampler": sampler.begin({"w": jnp.float32(0)})}
    ctx = context(9, 9, carry, training=False)
    _, kept = sampler.run(ctx, {}, carry["sampler"], sampler_every=5)
    assert sampled_by(ctx) is None and kept is carry["sampler"]


@pytest.mark.parametrize("method", ["grpo", "ppo", "on_policy_distillation"])
def test_it_is_there_where_it_is_asked_for(method):
    def names(**hparams):
        return [stage.name for stage in METHODS[method].bind(hparams, "hparams").stages]

    assert "sampler" not in names()
    assert names(sampler_every=2)[0] == "sampler"
    with pytest.raises(UserError, match="sampler_every = 0: it must be at least 1"):
        names(sampler_every=0)


def test_what_it_remembers_is_resumed_bit_for_bit(tmp_path):
    folder = tiny.write(tmp_path)
    write_prompts(folder / "prompts.jsonl", 16)

    def config(steps):
        return tiny.tiny_config(
            folder,
            method="grpo",
            hparams={"sampler_every": 2, "correction": "token_truncate"},
            steps=steps,
            rewards=[{"name": "tests.judged.letters"}],
            **{
                "data.sources[0].path": str(folder / "prompts.jsonl"),
                "data.validation": None,
                "data.batch_size": 8,
                "data.packing": False,
                "rollout.n": 2,
                "rollout.max_tokens": 4,
                "optim.schedule": "constant",
                "optim.warmup": 0.0,
                "checkpoint.every": 3,
            },
        )

    loop.train(config(4), str(tmp_path / "again"), quiet=True)
    loop.train(config(3), str(tmp_path / "parts"), quiet=True)
    loop.train(config(4), str(tmp_path / "parts"), quiet=True)
    assert tiny.saved(tmp_path / "parts") == tiny.saved(tmp_path / "again")
    ages = [row["rollout/staleness"] for row in tiny.rows(tmp_path / "again") if "loss" in row]
    differences = [
        row["sampler/difference"] for row in tiny.rows(tmp_path / "again") if "loss" in row
    ]
    assert ages == [0, 1, 0, 1]
    assert [gap > 1e-4 for gap in differences] == [False, True, False, True]
