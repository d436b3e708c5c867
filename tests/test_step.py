"""The step: guards that change nothing, averages, repeatability, held-out numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax import sharding
from ptjax.algorithms.base import Algorithm
from ptjax.forward import ForwardOptions, split
from ptjax.models import lora as lora_module
from ptjax.models.compute import Compute
from ptjax.models.decoder import Decoder
from ptjax.models.lora import Lora
from ptjax.optim import make_optimizer, make_schedule, state_shardings
from ptjax.step import StepOptions, eval_step, new_guard, train_step
from ptjax.types import Mean, TrainState
from tests import toy

EXAMPLES = toy.examples()
GUARDED = StepOptions(ema=0.9, spike=6.0, spike_window=3)
SCHEDULE = make_schedule(learning_rate=0.01, steps=20, schedule="linear", warmup=0.1)
TX = make_optimizer(toy.MODEL.table, SCHEDULE, weight_decay=0.1)


PLAIN = ForwardOptions()


@functools.cache
def compiled(options=GUARDED, model=toy.MODEL, tx=TX, forward_options=PLAIN):
    run = functools.partial(
        train_step,
        model=model,
        bound=toy.bound(),
        tx=tx,
        schedule=SCHEDULE,
        options=options,
        forward_options=forward_options,
    )
    return jax.jit(run, compiler_options=toy.QUICK)


def start(options=GUARDED, params=None, frozen=None, tx=TX):
    params = toy.params() if params is None else params
    ema = dict(params) if options.ema else None
    state = tx.init(params)
    return TrainState(jnp.int32(0), params, frozen or {}, state, new_guard(options), ema)


def arrays(columns):
    return {k: jnp.asarray(v) for k, v in columns.items()}


GOOD = arrays(toy.batch(EXAMPLES))
NAN = {**GOOD, "weights": GOOD["weights"].at[3].set(jnp.nan)}
INF = {**GOOD, "weights": GOOD["weights"].at[0].set(jnp.inf)}


def bytes_of(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def learned(state):
    return bytes_of((state.params, state.opt_state, state.ema))


@pytest.mark.parametrize("bad", [NAN, INF], ids=["nan", "inf"])
def test_a_step_that_is_not_finite_changes_nothing(bad):
    run = compiled()
    state, _ = run(start(), GOOD)
    once, logged = run(state, bad)
    assert learned(once) == learned(state)
    assert not np.isfinite(logged["loss"]) and logged["accepted"] == 0
    twice, logged = run(once, bad)
    assert learned(twice) == learned(state)
    assert (twice.guard["skipped"], twice.guard["streak"], twice.step) == (2, 2, 3)
    assert (logged["skipped"], logged["streak"]) == (2, 2)
    assert np.isfinite(twice.guard["losses"]).all()


def test_later_steps_are_as_if_nothing_had_been():
    run = compiled()
    clean, poisoned = start(), start()
    for batch in (GOOD, NAN, GOOD, INF, GOOD):
        poisoned, logged = run(poisoned, batch)
        if batch is GOOD:
            clean, expected = run(clean, batch)
            assert bytes_of(logged["lr"]) == bytes_of(expected["lr"])
    assert learned(poisoned) == learned(clean)
    assert bytes_of(poisoned.guard["losses"]) == bytes_of(clean.guard["losses"])
    assert (poisoned.guard["accepted"], poisoned.guard["streak"], poisoned.step) == (3, 0, 5)


@jax.custom_vjp
def sloped(values, slope):
    """`values`, whose gradient is multiplied by `slope`."""
    return values


sloped.defvjp(
    lambda values, slope: (values, slope),
    lambda slope, gradient: (gradient * slope, jnp.zeros_like(slope)),
)


def sloped_loss(outputs, batch):
    weights = batch["mask"] * batch["weights"][..., None]
    return Mean.of(-sloped(outputs.logps, batch["slope"]), weights), {}


@pytest.fixture(scope="module")
def on_eight():
    """A mesh of eight devices, a step on it, and the state before it."""
    options, mesh = StepOptions(), sharding.make_mesh(dict(fsdp=8))
    everywhere = sharding.replicated(mesh)
    params = toy.on_mesh(toy.MODEL, toy.params(), mesh)
    state = jax.device_put(start(options), everywhere).replace(params=params)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    shardings = shardings.replace(opt_state=state_shardings(TX, params, everywhere))
    run = functools.partial(
        train_step,
        model=toy.MODEL,
        bound=Algorithm(sloped_loss).bind({}, "hparams"),
        tx=TX,
        schedule=SCHEDULE,
        options=options,
        forward_options=PLAIN,
    )
    run = jax.jit(run, out_shardings=(shardings, None), compiler_options=toy.QUICK)
    return mesh, run, jax.device_put(state, shardings)


def shards(state):
    """The bits of parameters and optimizer on each device."""
    return [
        np.asarray(shard.data).tobytes()
        for leaf in jax.tree.leaves((state.params, state.opt_state))
        for shard in leaf.addressable_shards
    ]


@pytest.mark.parametrize(
    ("column", "value"),
    [("slope", np.inf), ("slope", np.nan), ("weights", np.inf), ("weights", np.nan)],
)
def test_what_poisons_one_shard_changes_nothing_on_any(on_eight, column, value):
    """One row of eight, a row a device: its loss and its gradient, or its gradient alone."""
    mesh, run, state = on_eight
    good = toy.batch(EXAMPLES)
    good["slope"] = np.ones_like(good["mask"])
    bad = good | {column: good[column].copy()}
    bad[column][5] = value
    with jax.set_mesh(mesh):
        good, bad = (sharding.put_batch(batch, mesh) for batch in (good, bad))
        before, expected = run(state, good)
        after, logged = run(before, bad)
        later, _ = run(after, good)
        clean, _ = run(before, good)
    assert np.isfinite(logged["loss"]) == (column == "slope")
    assert not np.isfinite(logged["grad_norm"])
    assert (expected["accepted"], logged["accepted"]) == (1, 0)
    assert shards(after) == shards(before)
    assert shards(later) == shards(clean) != shards(before)
    assert (later.guard["accepted"], later.guard["skipped"], later.step) == (2, 1, 3)


def with_losses(accepted, losses):
    state = start()
    guard = {**state.guard, "accepted": jnp.int32(accepted), "losses": jnp.array(losses)}
    return state.replace(guard=guard)


def test_a_spike_changes_nothing_once_the_window_is_full():
    run = compiled()
    low = [0.5, 0.6, 0.55]
    spiked, logged = run(with_losses(3, low), GOOD)
    assert logged["loss"] > 3 and logged["accepted"] == 0
    assert learned(spiked) == learned(start())
    np.testing.assert_array_equal(spiked.guard["losses"], np.float32(low))
    young, logged = run(with_losses(2, low), GOOD)
    assert logged["accepted"] == 1 and young.guard["losses"][2] == logged["loss"]
    spread, logged = run(with_losses(3, [0.5, 2.5, 4.5]), GOOD)
    assert logged["accepted"] == 1
    assert spread.guard["losses"][0] == logged["loss"]


def test_the_average_follows_the_parameters():
    run = compiled()
    state = start()
    wanted = {k: np.asarray(v, np.float64) for k, v in state.params.items()}
    for _ in range(3):
        state, _ = run(state, GOOD)
        wanted = {k: 0.9 * v + 0.1 * np.asarray(state.params[k]) for k, v in wanted.items()}
    for name, leaf in wanted.items():
        np.testing.assert_allclose(state.ema[name], leaf, rtol=1e-5, atol=1e-6)
    assert not np.allclose(state.ema["head"], state.params["head"], atol=1e-4)


def test_training_lowers_the_loss_and_logs_what_it_did():
    run, state, losses = compiled(), start(), []
    for step in range(8):
        state, logged = run(state, GOOD)
        losses.append(float(logged["loss"]))
        np.testing.assert_allclose(logged["lr"], SCHEDULE(step), rtol=1e-6)
    assert losses[-1] < 0.9 * losses[0]
    assert logged["grad_norm"] > 0
    assert logged["tokens"] == sum(len(e.tokens) for e in EXAMPLES)
    assert logged["trained_tokens"] == sum(e.mask.sum() for e in EXAMPLES)


RANDOM = ForwardOptions(Compute(dropout=0.2), neftune=5.0)


def test_randomness_repeats_bit_for_bit_and_follows_the_step():
    """Dropout, NEFTune and the adapters' dropout all on; only adapters are trained."""
    lora = Lora(rank=2, dropout=0.3)
    model = Decoder(toy.CONFIG, lora)
    rows = lora_module.rows(toy.MODEL.table, lora)
    dims, key = toy.CONFIG.dims, jax.random.key(1)
    adapters = jax.jit(lambda: lora_module.add(toy.params(), toy.MODEL.table, dims, lora, key))()
    options = StepOptions(seed=3, accumulate=2)
    tx = make_optimizer(rows, SCHEDULE)
    run = compiled(options, model, tx, RANDOM)

    def train(step):
        state = start(options, adapters, toy.params(), tx).replace(step=jnp.int32(step))
        losses = []
        for _ in range(3):
            state, logged = run(state, GOOD)
            losses.append(float(logged["loss"]))
        return state, losses

    one, again, later = train(0), train(0), train(1)
    assert one[1] == again[1] and bytes_of(one[0]) == bytes_of(again[0])
    assert one[1][0] != later[1][0]
    assert len(set(one[1])) == 3
    assert set(one[0].params) == set(rows)
    assert bytes_of(one[0].frozen) == bytes_of(toy.params())
    assert any(np.abs(one[0].params[name]).max() > 0 for name in rows if name.endswith("lora_b"))


def test_neftune_alone_makes_a_step_random():
    run = compiled(StepOptions(), forward_options=ForwardOptions(neftune=5.0))
    plain, _ = toy.loss_and_gradients(toy.batch(EXAMPLES))
    losses = [
        float(run(start(StepOptions()).replace(step=jnp.int32(step)), GOOD)[1]["loss"])
        for step in (0, 1)
    ]
    assert abs(losses[0] - losses[1]) > 1e-3
    assert np.abs(losses - plain).min() > 1e-3
    np.testing.assert_allclose(losses, plain, rtol=0.2)


def test_bfloat16_parameters_keep_one_program():
    params = {k: v.astype(jnp.bfloat16) for k, v in toy.params().items()}
    options = StepOptions()
    run = compiled(options)
    state = start(options, params)
    for _ in range(3):
        state, logged = run(state, GOOD)
    assert run._cache_size() == 1
    assert {leaf.dtype for leaf in state.params.values()} == {jnp.dtype("bfloat16")}
    assert logged["accepted"] == 1


def test_split_takes_every_nth_row():
    columns = {"tokens": jnp.arange(12).reshape(6, 2)}
    np.testing.assert_array_equal(split(columns, 3)["tokens"][1], [[2, 3], [8, 9]])


def test_held_out_numbers_are_those_of_training():
    run = functools.partial(
        eval_step,
        model=toy.MODEL,
        bound=toy.bound().judged,
        accumulate=2,
        forward_options=ForwardOptions(neftune=5.0),
    )
    columns = arrays(toy.packed(EXAMPLES, accumulate=2))
    terms, metrics = jax.jit(run)(toy.params(), columns)
    nll, _ = toy.loss_and_gradients(toy.batch(EXAMPLES))
    np.testing.assert_allclose(terms["loss"].value(), nll, rtol=1e-5)
    weight = sum(e.mask.sum() * e.weight for e in EXAMPLES)
    np.testing.assert_allclose(metrics["accuracy"].weight, weight)
    assert 0 <= metrics["accuracy"].value() < 0.5
