"""PPO: its terms by hand, what trains while the value function is alone, what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax import sharding
from ptjax.algorithms.policy_gradient import DENOMINATORS, policy_gradient
from ptjax.algorithms.ppo import ppo_after
from ptjax.config import defaults
from ptjax.errors import UserError
from ptjax.forward import ForwardOptions
from ptjax.prepare import hyperparameters
from ptjax.stages.base import Stage
from ptjax.step import gradients
from ptjax.types import Outputs
from tests import toy

ROLLOUT = Stage("rollout", lambda ctx, batch, carry: (batch, carry), sequences=1, judged=True)
PPO = ppo_after(ROLLOUT)
EXAMPLES = toy.examples()
OPTIONS = ForwardOptions(head_chunk=8)


def columns(layout="batch", policy_coef=1.0, **settings):
    """A batch with the stage's columns."""
    made = getattr(toy, layout)(EXAMPLES, **settings)
    state, shape = np.random.RandomState(1), made["mask"].shape
    drawn = {
        "old_logps": state.standard_normal(shape) * 0.3 - 4.0,
        "old_values": state.standard_normal(shape) * 0.2,
        "advantages": state.standard_normal(shape),
        "returns": state.standard_normal(shape),
    }
    inside = {name: (made["mask"] * x).astype(np.float32) for name, x in drawn.items()}
    return made | inside | {"policy_coef": np.full(len(shape) and shape[0], policy_coef, "f4")}


def test_terms_by_hand():
    batch = {k: jnp.asarray(v) for k, v in columns().items()}
    state = np.random.RandomState(2)
    mask = np.asarray(batch["mask"])
    logps, entropy, values = (mask * state.standard_normal(mask.shape) for _ in range(3))
    logps = logps * 0.4 + np.asarray(batch["old_logps"])
    outputs = Outputs(*(jnp.asarray(x, jnp.float32) for x in (logps,)))
    outputs = outputs._replace(
        entropy=jnp.asarray(entropy, jnp.float32), values=jnp.asarray(values, jnp.float32)
    )
    bound = PPO.bind({"entropy_coef": 0.01, "value_clip": 0.3}, "config.hparams")
    terms, metrics = bound.terms(outputs, batch)
    old, returns, base, advantages = (
        np.asarray(batch[name], np.float64)
        for name in ("old_logps", "returns", "old_values", "advantages")
    )
    weights = mask * np.asarray(batch["weights"])[..., None]

    def mean(x):
        return (x * weights).sum() / weights.sum()

    r = np.exp(logps - old)
    policy = -np.minimum(r * advantages, np.clip(r, 0.8, 1.2) * advantages)
    near = np.clip(values, base - 0.3, base + 0.3)
    value = 0.5 * np.maximum((values - returns) ** 2, (near - returns) ** 2)
    got = {name: (float(c), float(mean_.value())) for name, (c, mean_) in terms.items()}
    wanted = {
        "policy": (1.0, mean(policy)),
        "entropy": (-0.01, mean(entropy)),
        "value": (0.1, mean(value)),
    }
    assert got.keys() == wanted.keys()
    for name, pair in wanted.items():
        np.testing.assert_allclose(got[name], pair, rtol=2e-5, err_msg=name)
    np.testing.assert_allclose(metrics["value/mean"].value(), mean(values), rtol=1e-5)
    np.testing.assert_allclose(metrics["value/returns"].value(), mean(returns), rtol=1e-5)
    share = mean((near - returns) ** 2 > (values - returns) ** 2)
    np.testing.assert_allclose(metrics["value/clipped"].value(), share, rtol=1e-5)
    assert 0 < share < 1


@functools.cache
def compiled(model, bound, accumulate, mesh):
    def run(params, batch):
        return gradients(
            model, bound, toy.state(params), batch, accumulate=accumulate, options=OPTIONS, key=None
        )

    return jax.jit(run, compiler_options=toy.QUICK)


def stepped(given, critic="shared", accumulate=1, mesh=None):
    """The loss and the gradients of all leaves."""
    bound = PPO.bind({"critic": critic, "entropy_coef": 0.01}, "config.hparams")
    model = toy.VALUERS[critic]
    assert bound.head == model.head
    params = toy.params(toy.CONFIG, model.head)
    run = compiled(model, bound, accumulate, mesh)
    if mesh is None:
        loss, grads, _ = run(params, {k: jnp.asarray(v) for k, v in given.items()})
    else:
        with jax.set_mesh(mesh):
            placed = toy.on_mesh(model, params, mesh)
            loss, grads, _ = run(placed, sharding.put_batch(given, mesh))
    return np.asarray(loss), jax.tree.map(np.asarray, grads)


def test_a_step_does_not_depend_on_layout_micro_batches_or_mesh():
    wanted = stepped(columns())
    mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
    packed = columns("packed", shards=4, accumulate=2)
    toy.assert_same(stepped(packed, accumulate=2, mesh=mesh), wanted, rtol=2e-5)


@pytest.mark.parametrize(("critic", "learns"), [("separate", "critic."), ("shared", "value")])
def test_only_the_critic_learns_while_the_policy_waits(critic, learns):
    """On a shared body its head alone."""
    loss, grads = stepped(columns(policy_coef=0.0), critic)
    for name, gradient in grads.items():
        assert bool(np.abs(gradient).max() > 0) == name.startswith(learns), name
    assert loss > 0


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_padding_changes_no_mean(denominator):
    """L_max is what the rollout's config says an answer may have, whatever T is."""
    config = defaults()
    config.method, config.rollout.max_tokens = "ppo", 7
    config.hparams.denominator = denominator
    asked = hyperparameters(config, PPO)
    assert asked["max_tokens"] == 7
    batch = columns()
    shape = batch["mask"].shape
    drawn = np.random.RandomState(3).standard_normal((3, *shape)).astype(np.float32)
    given = dict(zip(("logps", "entropy", "values"), drawn * batch["mask"], strict=True))

    def policy(longer, **more):
        def padded(x):
            return jnp.pad(x, ((0, 0), (0, 0), (0, longer if x.shape == shape else 0))[: x.ndim])

        wide = {name: padded(x) for name, x in batch.items()}
        outputs = Outputs(**{name: padded(x) for name, x in given.items()})
        terms, _ = PPO.bind(asked | more, "config.hparams").terms(outputs, wide)
        return float(terms["policy"][1].value())

    assert policy(0) == pytest.approx(policy(9), rel=1e-6) and policy(0) != 0
    if denominator == "constant":
        assert policy(0) * 7 == pytest.approx(policy(0, denominator="sequence_sum"), rel=1e-5)


def test_hyperparameters_and_stages():
    bound = PPO.bind({}, "config.hparams")
    assert bound.head == "lm_value"
    assert [stage.name for stage in bound.stages] == ["rollout", "ref_logps", "gae"]
    assert dict(bound.values)["beta"] == 0.05
    free = PPO.bind({"beta": 0.0}, "config.hparams")
    assert [stage.name for stage in free.stages] == ["rollout", "gae"]
    led = PPO.bind({"kl_target": 6.0}, "config.hparams")
    assert [stage.name for stage in led.stages] == ["rollout", "ref_logps", "kl_control", "gae"]
    forking = PPO.bind({"beta": 0.0, "top_entropy": 0.2}, "config.hparams")
    assert [stage.name for stage in forking.stages] == ["rollout", "gae_and_entropy"]
    aimed = PPO.bind({"beta": 0.0, "entropy_target": 0.5}, "config.hparams")
    assert [stage.name for stage in aimed.stages][1:] == ["gae_and_entropy", "entropy_control"]


def test_kl_entropy_and_stale_samples_are_those_of_the_policy_gradient():
    batch = {k: jnp.asarray(v) for k, v in columns().items()}
    count = batch["mask"].shape[0]
    state = np.random.RandomState(4)
    for name in ("ref_logps", "sampler_logps"):
        gap = 0.3 * state.standard_normal(batch["mask"].shape)
        batch[name] = batch["mask"] * (batch["old_logps"] + jnp.asarray(gap, jnp.float32))
    batch["entropy_coef"] = jnp.full(count, 0.25)
    logps = batch["old_logps"] + 0.1 * batch["mask"]
    outputs = Outputs(logps=logps, entropy=-logps, values=batch["old_values"])
    shared = {"beta": 0.3, "kl": "k2", "kl_in": "loss", "kl_ratio": True, "off_policy": 0.05}
    found, metrics = PPO.bind(shared, "config.hparams").terms(outputs, batch)
    wanted, _ = policy_gradient(outputs, batch, denominator="tokens", **shared)
    assert {*found} == {*wanted, "value"} == {"policy", "kl", "entropy", "value"}
    for name, (coefficient, mean) in wanted.items():
        assert float(found[name][0]) == pytest.approx(float(coefficient)), name
        assert float(found[name][1].value()) == pytest.approx(float(mean.value())), name
    assert float(found["kl"][0]) == pytest.approx(0.3)
    assert 0 < float(metrics["off_policy"].value()) < 1
    waiting = batch | {"policy_coef": jnp.zeros(count)}
    terms, _ = PPO.bind(shared, "config.hparams").terms(outputs, waiting)
    assert [name for name, (coefficient, _) in terms.items() if float(coefficient)] == ["value"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"critic": "seperate"}, "critic = 'seperate'; did you mean 'separate'"),
        ({"kl": "k4"}, "kl = 'k4'"),
        ({"value_clip": 0.0}, "value_clip = 0.0: it must be above 0, or None"),
        ({"lam": 1.5}, r"lam = 1.5: it must be in \[0, 1\]"),
        ({"kl_target": 6.0, "beta": 0.0}, "it moves beta, which is to begin above 0"),
        ({"kl_in": "reward"}, "kl_in = 'reward'"),
        ({"kl_ratio": True}, "it goes with beta > 0 and kl_in = 'loss'"),
        ({"top_entropy": 0.0}, r"top_entropy = 0.0: it must be in \(0, 1\]"),
        ({"clip_low": -0.1}, "clip_low = -0.1: it must be not negative"),
        ({"value_coeff": 1.0}, "did you mean 'value_coef'"),
    ],
)
def test_refused(given, message):
    with pytest.raises(UserError, match=message):
        PPO.bind(given, "config.hparams")
