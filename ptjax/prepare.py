"""From a config to everything a run needs: model, data, optimizer, state, jitted steps."""

import functools
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from ptjax import data, sharding
from ptjax.algorithms import METHODS
from ptjax.algorithms.base import Algorithm, Bound, named
from ptjax.config import Config, check, facts, leaves
from ptjax.errors import UserError, did_you_mean
from ptjax.hosts.alike import check_alike, code
from ptjax.job import BUFFER, Run, staged
from ptjax.logps_cache import attach
from ptjax.models.adapt import adapt, changed
from ptjax.models.flax_adapter import FlaxModel
from ptjax.models.quantised import Quantised
from ptjax.models.spec import Param
from ptjax.optim import Schedule, make_optimizer, make_schedule, state_shardings
from ptjax.passes import compute, forward_options, make_passes, one_pass, step_options
from ptjax.reference import check_reference, make_reference
from ptjax.rollouts import check_rollout, make_rollout
from ptjax.step import StepOptions, new_guard
from ptjax.types import Params, TrainState, column_dtypes
from ptjax.workdir import load

_log = logging.getLogger("ptjax")

ADAPTER = r".*\.(lora_a|lora_b|dora_m)|score|value|critic\.score"
"""Trained where adapters are: they, and scalar heads."""


def prepare(config: Config, workdir: str | None = None) -> Run:
    """Builds the whole run up to its first step.

    Args:
      config: the whole config.
      workdir: where a run, if this is a local folder, keeps what `reference.mode = "cached"`
        computes, unless `data.cache` says where.

    Raises:
      UserError: anything in the config, the model or the data that cannot be.
    """
    check_alike(lambda: {**code(), "the workdir": workdir, **facts(config)})
    check(config)
    algorithm = named(config.method, METHODS)
    bound = algorithm.bind(hyperparameters(config, algorithm), "config.hparams")
    asked = any(stage.reference for stage in bound.stages)
    follows = any(stage.reference and stage.begin for stage in bound.stages)
    check_reference(config, asked, follows, taught="divergence" in bound.needs)
    mesh = sharding.make_mesh(config.mesh.to_dict())
    judges = check_rollout(config, bound, sharding.batch_shards(mesh))
    check_method(config, bound)
    bundle = load(
        config.model.source,
        param_dtype=config.model.param_dtype,
        mesh=mesh,
        chat_template=config.data.chat_template,
        special_tokens=tuple(config.model.special_tokens),
        head=bound.head,
        seed=config.seed,
        critic=config.model.critic,
        base=config.model.base,
        offload=config.model.offload,
    )
    pipeline = data.build(
        config.data,
        bundle.tokenizer,
        kind=bound.algorithm.data,
        seed=config.seed,
        shards=sharding.batch_shards(mesh),
        accumulate=config.accumulate,
        own=sharding.process_shards(mesh, jax.process_index()),
        quiet=jax.process_index() > 0,
        whole=any(stage.sequences for stage in bound.stages),
        cache_dir=_cache(config, workdir),
        prompts_once=not isinstance(bundle.model, FlaxModel),
    )
    order = {"the order of the data": pipeline.schedule.identity}
    check_alike(lambda: {**dict(leaves(bundle.hf_config, "config.json")), **order})
    rollout = make_rollout(config, bound, judges, bundle, pipeline, compute(config))
    steps = _steps(config, pipeline, rollout.updates if rollout else 1)
    _remark(config, bound, pipeline, steps, templated=bool(bundle.tokenizer.chat_template))
    lora = None if config.lora is None else config.lora.to_dict()
    base = bundle.params
    bundle, rows = adapt(bundle, lora, seed=config.seed, mesh=mesh)
    alone = not pipeline.kind.one_prompt
    if alone and pipeline.examples.has_twins() and not bundle.model.is_random(compute(config)):
        raise UserError(
            "config.model.dropout = 0: texts that are their own positive differ by dropout alone "
            "(SimCSE); set 0.1, or give other positives"
        )
    if alone and pipeline.held_out is not None and pipeline.held_out.has_twins():
        raise UserError(
            "config.data.validation: held-out texts that are their own positive are equal to it "
            "without dropout, so they measure nothing; set None, or give rows of query and positive"
        )
    schedule, tx = optimizer(config, rows, bundle.params, steps)
    state = initial_state(config, bundle.params, tx, step_options(config), mesh, bound)
    reference = None
    if asked and not follows:  # one that follows is what its stage remembers
        reference = make_reference(config, bundle, state.params, mesh)
    if rollout is not None and rollout.updates > 1:
        embed = None if reference is None else reference.model.config.embed
        shapes = staged(bound.stages, rollout, embed, pipeline.shapes[0])
        state = replace(
            state, carry={**state.carry, BUFFER: buffer(shapes, mesh, config.model.dtype)}
        )
    once = pipeline.examples.prompts_once
    options = forward_options(config, bound, rollout, prompts_once=once)
    passes = make_passes(config, bound, bundle.model, tx, schedule, state, options)
    run = Run(
        config=config,
        mesh=mesh,
        bundle=bundle,
        changed=changed(base, bundle.params, config.model.special_tokens),
        rows=rows,
        pipeline=pipeline,
        bound=bound,
        steps=steps,
        state=state,
        abstract=abstract(state),
        train_step=passes.train,
        reference=reference,
        rollout=rollout,
        eval_step=passes.evaluate,
        policy_pass=passes.policy,
        reference_pass=one_pass(config, reference.model, options) if reference else None,
    )
    if reference is not None and config.reference.mode == "cached":
        identity = [repr(reference.model), config.model.dtype, config.model.param_dtype]
        logps = functools.partial(run.reference_pass, fields=("logps",))
        with jax.set_mesh(mesh):
            attach(pipeline, logps, reference.params(state.frozen), mesh, identity)
        run.reference = None  # its leaves are not needed any more
    if config.checkpoint.best:
        _check_best(run, config.checkpoint.best[0])
    return run


def check_method(config: Config, bound: Bound) -> None:
    """Refuses what a method cannot do: a coupled loss in micro-batches, samples of a scorer.

    Raises:
      UserError: names the setting.
    """
    if bound.coupled and config.accumulate > 1:
        raise UserError(
            f"config.accumulate = {config.accumulate}: the loss of {config.method} with these "
            "hparams couples the rows of a batch, which micro-batches would change"
        )
    if bound.head == "score" and config.samples.prompts:
        raise UserError(
            f"config.samples.prompts: {config.method} trains a scorer, which has no text"
        )


def _remark(
    config: Config, bound: Bound, pipeline: data.Pipeline, steps: int, *, templated: bool
) -> None:
    """Says what of the data is used, and warns of what is allowed and seldom meant."""
    examples = pipeline.examples
    told = bound.told(examples.scores, examples.margin)
    if told and jax.process_index() == 0:
        _log.info("%s: %s", config.method, told)
    if advice := bound.advice(examples.scores):
        _log.warning("%s: %s", config.method, advice)
    if templated and _has_text(pipeline):
        asks = "samples and `ptjax.generate` ask with it"
        if bound.head == "score":
            asks = "a reward is asked with it (`model`, `process_model`)"
        _log.warning(
            "%s: the data's prompts are text, which is trained without the chat template, but %s; "
            "give prompts as messages",
            config.method,
            asks,
        )
    if (every := dict(bound.values).get("sync_every", 0)) >= steps:
        _log.warning(
            "config.hparams.sync_every = %d, but the run has %d steps: the reference never follows "
            "the policy; give fewer than the run's steps, or 0",
            every,
            steps,
        )


def _has_text(pipeline: data.Pipeline) -> bool:
    """Whether answers to a prompt that are judged, by the first row of each source, are text.

    Prompts alone get the template, and texts that stand alone have none.
    """
    kind = pipeline.kind
    if not (kind.judged and kind.one_prompt and kind.trained):
        return False
    firsts = np.unique(pipeline.examples.source, return_index=True)[1]
    return any(pipeline.examples.is_text(int(first), pipeline.kind) for first in firsts)


def hyperparameters(config: Config, algorithm: Algorithm) -> dict[str, Any]:
    """`config.hparams`, and what the method reads of `config.rollout`."""
    given = config.hparams.to_dict()
    for name in ("max_tokens", "epochs", "minibatches"):
        if name in given:
            raise UserError(f"config.hparams.{name}: set config.rollout.{name}")
        if name in algorithm.hyperparameters():
            given[name] = config.rollout[name]
    return given


def _cache(config: Config, workdir: str | None) -> str | None:
    """Where encoded data go when the config does not say: a folder that is gone with the process.

    What a reference said of them is worth keeping with the run.
    """
    if config.reference.mode != "cached" or config.data.cache is not None or workdir is None:
        return None
    if "://" in workdir:
        _log.warning(
            "config.reference.mode = 'cached': %s is no local folder, so the reference's log-probs "
            "are gone with this process and computed again on resume; set config.data.cache",
            workdir,
        )
        return None
    return str(Path(workdir) / "data")


def _check_best(run: Run, metric: str) -> None:
    known = run.held_out_names()
    if metric not in known:
        raise UserError(
            f"config.checkpoint.best: unknown metric {metric!r}{did_you_mean(str(metric), known)}"
        )


def _steps(config: Config, pipeline: data.Pipeline, updates: int) -> int:
    """Optimizer steps of the run, from `steps`, `epochs` or the sources' own epochs.

    Each batch of the data leads to as many as `updates`.
    """
    if config.steps is not None and config.epochs is not None:
        raise UserError(
            f"config.steps = {config.steps} and config.epochs = {config.epochs}: give steps or "
            "epochs, not both"
        )
    if config.steps is not None:
        steps = config.steps
    elif config.epochs is not None:
        steps = math.ceil(config.epochs * pipeline.steps_per_epoch) * updates
    else:
        steps = None if pipeline.steps is None else pipeline.steps * updates
    if steps is None:
        raise UserError("config: give steps, epochs, or epochs for every data source")
    if pipeline.steps is not None and steps > pipeline.steps * updates:
        raise UserError(
            f"config.steps = {steps}, but the sources' epochs end after {pipeline.steps * updates}"
        )
    return steps


def optimizer(
    config: Config, rows: Mapping[str, Param], params: Mapping[str, Any], steps: int
) -> tuple[Schedule, optax.GradientTransformation]:
    """The schedule, and the transformation over the trainable leaves."""
    given = config.optim.to_dict()
    scheduled = {k: given.pop(k) for k in ("learning_rate", "schedule", "warmup", "final", "decay")}
    schedule = make_schedule(steps=steps, **scheduled)
    trained = trainable(config, params)
    if given["rounding"] != "nearest" and not any(params[k].dtype == "bfloat16" for k in trained):
        raise UserError(
            f"config.optim.rounding = {given['rounding']!r} is for bfloat16 parameters, and those "
            "that are trained are float32 (adapters always are): set config.model.param_dtype = "
            "'bfloat16', or rounding = 'nearest'"
        )
    kept = {k: rows[k] for k in trained}
    return schedule, make_optimizer(kept, schedule, seed=config.seed, **given)


def trainable(config: Config, params: Mapping[str, Any]) -> list[str]:
    """Names of the trained leaves: by the regex `config.trainable`, else adapters, else all."""
    pattern = config.trainable or (".*" if config.lora is None else ADAPTER)
    try:
        found = [name for name in params if re.fullmatch(pattern, name)]
    except re.error as error:
        raise UserError(f"config.trainable {pattern!r} is not a regex: {error}") from error
    if quantised := [name for name in found if isinstance(params[name], Quantised)]:
        raise UserError(
            f"config.trainable {pattern!r} matches {quantised[0]}, which config.model.base = "
            f"{params[quantised[0]].kind!r} keeps quantised: it cannot be trained"
        )
    away = [name for name in found if config.model.offload and sharding.is_on_host(params[name])]
    if away:
        raise UserError(
            f"config.trainable {pattern!r} matches {away[0]}, which config.model.offload keeps in "
            "the host's memory: it cannot be trained"
        )
    if not found:
        raise UserError(
            f"config.trainable {pattern!r} matches no parameter; there are: {', '.join(params)}"
        )
    return found


def initial_state(
    config: Config,
    params: Params,
    tx: optax.GradientTransformation,
    options: StepOptions,
    mesh: Mesh,
    bound: Bound,
) -> TrainState:
    """The state before the first step, every leaf on the mesh."""
    names = set(trainable(config, params))
    trained = {name: leaf for name, leaf in params.items() if name in names}
    everywhere = NamedSharding(mesh, PartitionSpec())
    shardings = state_shardings(tx, trained, everywhere, offload=config.optim.offload)
    opt_state = jax.jit(tx.init, out_shardings=shardings)(trained)
    ema = None
    if config.ema:  # in float32: in bfloat16 a small move would be lost
        ema = {name: jnp.array(leaf, jnp.float32, copy=True) for name, leaf in trained.items()}
    step, guard = jax.device_put((jnp.int32(0), new_guard(options)), everywhere)
    carry = {s.name: s.begin(trained) for s in bound.stages if s.begin}
    return TrainState(
        step=step,
        params=trained,
        frozen={name: leaf for name, leaf in params.items() if name not in names},
        opt_state=opt_state,
        guard=guard,
        ema=ema,
        carry=_on_mesh(carry, everywhere),
    )


def buffer(shapes: Mapping[str, tuple[int, ...]], mesh: Mesh, dtype: str) -> dict[str, Array]:
    """Room for a rollout's columns, where it is kept for several steps.

    Args:
      shapes: of the columns.
      mesh: where they lie.
      dtype: of hidden states, which a teacher hands on as it computes them.
    """
    over_rows = NamedSharding(mesh, PartitionSpec(sharding.batch_axes(mesh)))
    dtypes = column_dtypes(dtype)
    return {
        name: jnp.zeros(shape, dtypes[name], device=over_rows) for name, shape in shapes.items()
    }


def _on_mesh(tree: Any, everywhere: NamedSharding) -> Any:
    """Leaves that lie on no mesh yet, copied to every device."""
    return jax.tree.map(
        lambda x: x if isinstance(x.sharding, NamedSharding) else jax.device_put(x, everywhere),
        tree,
    )


def abstract(state: TrainState) -> TrainState:
    """What a checkpoint holds of a state: shapes and shardings, frozen leaves left out."""
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    return replace(shapes, frozen={})
