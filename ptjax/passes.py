"""What a run computes, jitted: an optimizer step, held-out data, log-probs for stages."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import optax

from ptjax.algorithms.base import Bound
from ptjax.config import Config
from ptjax.errors import UserError
from ptjax.forward import ForwardOptions, forward_in_parts
from ptjax.models.compute import Compute
from ptjax.models.decoder import Decoder
from ptjax.optim import Schedule
from ptjax.stages.base import GROUP
from ptjax.stages.rollout import Sizes
from ptjax.step import StepOptions, eval_step, train_step
from ptjax.types import TrainState


class Passes(NamedTuple):
    """The jitted functions of a run.

    Attributes:
      train: `(state, batch, teacher) -> (state, metrics)`, the state donated.
      evaluate: `(params, batch, teacher) -> (terms, metrics)`.
      policy: `(params, batch, fields=...) -> Outputs`.
    """

    train: Any
    evaluate: Any
    policy: Any


def make_passes(
    config: Config,
    bound: Bound,
    model: Decoder,
    tx: optax.GradientTransformation,
    schedule: Schedule,
    state: TrainState,
    forward_options: ForwardOptions,
) -> Passes:
    """Jits what a config asks for.

    Args:
      config: the whole config.
      bound: the method, its hyperparameters fixed.
      model: the policy.
      tx: from `prepare.optimizer`, as is `schedule`.
      schedule: the learning rate.
      state: its arrays, or shapes in their place, say by their shardings where results go.
      forward_options: of every pass.
    """
    step = functools.partial(
        train_step,
        model=model,
        bound=bound,
        tx=tx,
        schedule=schedule,
        options=replace(step_options(config), router_aux=router_aux(config, model)),
        forward_options=forward_options,
    )
    evaluate = functools.partial(
        eval_step,
        model=model,
        bound=bound.judged,
        accumulate=config.accumulate,
        forward_options=forward_options,
    )
    shardings = jax.tree.map(lambda x: x.sharding, state)
    return Passes(
        train=jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)),
        evaluate=jax.jit(evaluate),
        policy=one_pass(config, model, forward_options),
    )


def router_aux(config: Config, model: Decoder) -> float:
    """The coefficient of the load-balancing loss: the config's, else the model's own.

    Raises:
      UserError: the config gives one, and the model has no experts.
    """
    given = config.model.router_aux_loss_coef
    if given and not model.config.experts:
        raise UserError(
            f"config.model.router_aux_loss_coef = {given}: {config.model.source} has no experts"
        )
    return model.config.router_aux_loss_coef if given is None else float(given)


def one_pass(config: Config, model: Decoder, options: ForwardOptions) -> Callable[..., Any]:
    """A model's jitted forward pass without a gradient: `(params, batch, fields=...)`."""
    run = functools.partial(forward_in_parts, model, options=options, accumulate=config.accumulate)
    return jax.jit(run, static_argnames="fields")


def step_options(config: Config) -> StepOptions:
    """The config's fields that say how a step runs."""
    return StepOptions(
        accumulate=config.accumulate,
        ema=config.ema,
        spike=config.guard.spike,
        spike_window=config.guard.spike_window,
        seed=config.seed,
    )


def forward_options(
    config: Config, bound: Bound, rollout: Sizes | None, *, prompts_once: bool
) -> ForwardOptions:
    """The config's fields that say how a forward pass runs, and those that the method sets.

    Args:
      config: the whole config.
      bound: the method.
      rollout: how answers are sampled, where they are.
      prompts_once: whether packed rows may hold an example's prompt once.
    """
    options: Mapping[str, Any] = {
        "temperature": temperature(rollout, bound),
        **dict(bound.forward),
    }
    return ForwardOptions(
        prompts_once=prompts_once,
        compute=compute(config),
        head_chunk=config.model.head_chunk,
        neftune=config.neftune,
        pooling=config.model.pooling,
        **options,
    )


def compute(config: Config) -> Compute:
    """The config's fields that say how a model is computed."""
    model = config.model
    return Compute(
        dtype=model.dtype, remat=model.remat, dropout=model.dropout, attention=model.attention
    )


def temperature(rollout: Sizes | None, bound: Bound) -> float:
    """What logits are divided by before they are scored: as they were to sample, for groups."""
    grouped = any(stage.sequences == GROUP for stage in bound.stages)
    return rollout.temperature if rollout is not None and grouped else 1.0
