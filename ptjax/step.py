"""One optimizer step, jitted: micro-batches, exact means, guards, update.

Shapes: the batch's columns have their leading axis split into `accumulate` micro-batches.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from ptjax.algorithms.base import Bound
from ptjax.balance import routing_metrics, shares_of
from ptjax.forward import ForwardOptions, computed, forward, micro_key, split
from ptjax.losses.router import expert_shares, load_balancing
from ptjax.models.decoder import Decoder
from ptjax.ops.divergence import Teacher
from ptjax.types import Batch, Mean, Outputs, Params, TrainState


@dataclass(frozen=True)
class StepOptions:
    """How a step runs.

    Attributes:
      accumulate: micro-batches a step.
      ema: decay of the parameters' moving average; 0 for none.
      spike: a step whose loss is more than `spike` median absolute deviations above the median of
        the last accepted ones changes nothing; 0 for no such guard.
      spike_window: how many accepted losses the median is over.
      seed: folded with the step's number into all its randomness.
      router_aux: coefficient of the load-balancing loss of a mixture of experts; 0 for none.
    """

    accumulate: int = 1
    ema: float = 0.0
    spike: float = 0.0
    spike_window: int = 64
    seed: int = 0
    router_aux: float = 0.0


def new_guard(options: StepOptions) -> dict[str, Array]:
    """What the guards remember: counts, and the last accepted losses."""
    window = options.spike_window if options.spike else 0
    return {
        "accepted": jnp.int32(0),
        "skipped": jnp.int32(0),
        "streak": jnp.int32(0),
        "losses": jnp.zeros(window, jnp.float32),
    }


def term_weights(bound: Bound, batch: Batch) -> dict[str, Array]:
    """Each term's denominator over the whole batch; it needs no forward pass."""
    nothing: Any = jnp.zeros(batch["tokens"].shape, jnp.float32)
    terms, _ = bound.terms(Outputs(**{name: nothing for name in bound.needs}), batch)
    return {name: jax.lax.stop_gradient(mean.weight) for name, (_, mean) in terms.items()}


def gradients(
    model: Decoder,
    bound: Bound,
    state: TrainState,
    batch: Batch,
    *,
    accumulate: int,
    options: ForwardOptions,
    key: Array | None,
    teacher: Teacher | None = None,
    router_aux: float = 0.0,
) -> tuple[Array, Params, dict[str, Mean]]:
    """The loss over the whole batch, its gradient in float32, and the metrics.

    loss = Σ_terms coefficient · Σ total / Σ weight, with both sums over all micro-batches.

    A mixture of experts has the load-balancing loss as a term beside the method's own, where
    `router_aux` is not 0. That is a product of two means over the batch: with several micro-batches
    a forward pass over all of them finds the one that has no gradient first.
    """
    weights = term_weights(bound, batch)
    routed = ("routing",) if model.config.experts else ()
    balanced = bool(routed and router_aux)
    tokens = computed(batch)
    shares = None
    if balanced and accumulate > 1:
        shares = shares_of(
            *(model, state.merged(), batch, tokens),
            accumulate=accumulate,
            options=options,
            key=key,
        )

    def micro_loss(params: Params, micro: Batch, key: Array | None):
        outputs = forward(
            model,
            {**state.frozen, **params},
            micro,
            fields=(*bound.needs, *routed),
            options=options,
            key=key,
            linear=bound.linear(micro) if bound.linear else None,
            teacher=teacher,
        )
        terms, metrics = bound.terms(outputs, micro)
        parts = [
            coefficient * Mean(mean.total, weights[name]).value()
            for name, (coefficient, mean) in terms.items()
        ]
        apart = len(terms) > 1 or balanced
        if balanced:
            load, probs = outputs.routing
            total = load_balancing(expert_shares(load, tokens) if shares is None else shares, probs)
            parts.append(router_aux * Mean(total, tokens).value())
        metrics = metrics | {f"loss/{n}": mean for n, (_, mean) in terms.items() if apart}
        return sum(parts), (metrics, outputs.routing)

    run = jax.value_and_grad(micro_loss, has_aux=True)
    if accumulate == 1:
        (loss, (metrics, routing)), grads = run(state.params, batch, key)
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        return loss, grads, metrics | routing_metrics(routing, tokens)

    def add(total: Any, scanned: tuple[Array, Batch]):
        index, micro = scanned
        found = run(state.params, micro, micro_key(key, index))
        return jax.tree.map(lambda t, x: t + x, total, found), None

    micros = split(batch, accumulate)
    first = jax.tree.map(lambda x: x[0], micros)
    shapes = jax.eval_shape(run, state.params, first, key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shapes)
    found, _ = jax.lax.scan(add, zeros, (jnp.arange(accumulate), micros))
    (loss, (metrics, routing)), grads = found
    return loss, grads, metrics | routing_metrics(routing, tokens)


def train_step(
    state: TrainState,
    batch: Batch,
    teacher: Teacher | None = None,
    *,
    model: Decoder,
    bound: Bound,
    tx: optax.GradientTransformation,
    schedule: Callable[[Any], Any],
    options: StepOptions,
    forward_options: ForwardOptions,
) -> tuple[TrainState, dict[str, Array]]:
    """One step: gradients, guards, update. Pure; jit it with the state donated.

    A step whose loss or gradient is not finite, or whose loss is a spike, changes nothing but the
    counts: parameters, optimizer state and its schedule stay as they were, bit for bit.

    Returns:
      The new state, and float32 scalars to log.
    """
    key = None
    if forward_options.neftune or model.is_random(forward_options.compute):
        key = jax.random.fold_in(jax.random.key(options.seed), state.step)
    loss, grads, metrics = gradients(
        model,
        bound,
        state,
        batch,
        accumulate=options.accumulate,
        options=forward_options,
        key=key,
        teacher=teacher,
        router_aux=options.router_aux,
    )
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    accept = finite & ~_is_spike(state.guard, loss, options)

    def update(params: Any, opt_state: Any, ema: Params | None):
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        if ema is not None:
            ema = jax.tree.map(lambda e, p: options.ema * e + (1 - options.ema) * p, ema, params)
        return params, opt_state, ema

    # A branch, not a selection: selecting would keep a second copy of the optimizer's state.
    before = (state.params, state.opt_state, state.ema)
    params, opt_state, ema = jax.lax.cond(accept, update, lambda *same: same, *before)
    logged = {name: mean.value() for name, mean in metrics.items()}
    logged |= {
        "loss": loss,
        "grad_norm": norm,
        "lr": jnp.asarray(schedule(state.guard["accepted"]), jnp.float32),
        "accepted": accept.astype(jnp.float32),
        "tokens": jnp.sum(batch["valid"]),
        "trained_tokens": jnp.sum(batch["mask"]),
    }
    guard = _remember(state.guard, loss, accept)
    logged |= {"skipped": guard["skipped"], "streak": guard["streak"]}
    state = replace(
        state, step=state.step + 1, params=params, opt_state=opt_state, ema=ema, guard=guard
    )
    return state, logged


def _is_spike(guard: dict[str, Array], loss: Array, options: StepOptions) -> Array:
    """Whether a loss stands out from the last accepted ones; never before the window is full."""
    if not options.spike:
        return jnp.bool_(False)
    losses = guard["losses"]
    median = jnp.median(losses)
    deviation = jnp.median(jnp.abs(losses - median))
    full = guard["accepted"] >= losses.shape[0]
    return full & (loss > median + options.spike * jnp.maximum(deviation, 1e-3 * jnp.abs(median)))


def _remember(guard: dict[str, Array], loss: Array, accept: Array) -> dict[str, Array]:
    losses = guard["losses"]
    if losses.shape[0]:
        place = guard["accepted"] % losses.shape[0]
        losses = jnp.where(accept, losses.at[place].set(loss), losses)
    return {
        "accepted": guard["accepted"] + accept,
        "skipped": guard["skipped"] + ~accept,
        "streak": jnp.where(accept, 0, guard["streak"] + 1),
        "losses": losses,
    }


def eval_step(
    params: Params,
    batch: Batch,
    teacher: Teacher | None = None,
    *,
    model: Decoder,
    bound: Bound,
    accumulate: int,
    forward_options: ForwardOptions,
) -> tuple[dict[str, Mean], dict[str, Mean]]:
    """A loss's terms, with their coefficients, and its metrics on held-out data, as sums."""

    def one(micro: Batch) -> tuple[dict[str, Mean], dict[str, Mean]]:
        outputs = forward(
            *(model, params, micro), fields=bound.needs, options=forward_options, teacher=teacher
        )
        terms, metrics = bound.terms(outputs, micro)
        return {n: Mean(c * mean.total, mean.weight) for n, (c, mean) in terms.items()}, metrics

    parts = jax.lax.map(one, split(batch, accumulate))
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), parts)
