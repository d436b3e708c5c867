"""What a config says of rollouts: whether it fits the method, and the object that stages use."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ptjax.algorithms.base import Bound
from ptjax.config import changed_keys, defaults
from ptjax.data import Pipeline
from ptjax.data.template import Template
from ptjax.environments.base import environment
from ptjax.errors import UserError, check_values
from ptjax.hosts.exchange import from_each
from ptjax.models.bundle import Bundle
from ptjax.models.compute import Compute
from ptjax.rewards.base import Reward, accepted, ready, rewards
from ptjax.stages.base import GROUP
from ptjax.stages.rollout import Rollout, Sizes

_SAMPLES = 4
_ROUND_LENGTH = 64
_SIZES = ("n", "max_tokens", "temperature", "rows", "epochs", "minibatches")


def check_rollout(config: Any, bound: Bound, shards: int = 1) -> tuple[Reward, ...]:
    """Refuses settings of rollouts that nothing would read, or that cannot be; finds the rewards.

    Args:
      config: the whole config.
      bound: the method.
      shards: over which the mesh spreads the rows of a batch.

    Raises:
      UserError: names the setting.
    """
    stages = bound.stages
    given, method = config.rollout.to_dict(), config.method
    judged = any(stage.judged for stage in stages)
    if not any(stage.sequences for stage in stages):
        if changed_keys(defaults().rollout, config.rollout):
            raise UserError(f"config.rollout is set, but {method} samples no answers")
        if config.rewards:
            raise UserError(f"config.rewards is set, but {method} asks no rewards")
        return ()
    if config.data.packing:
        raise UserError(
            f"config.data.packing: how long the answers of {method} will be is not known "
            "beforehand; set packing = False and config.data.batch_size"
        )
    if config.reference.mode == "cached":
        raise UserError(
            f"config.reference.mode = 'cached': the answers of {method} are new at every step"
        )
    _check_ranges(given)
    grouped = any(stage.sequences == GROUP for stage in stages)
    if grouped:
        _check_groups(config, given, any("advantages" in stage.writes for stage in stages))
        _check_parts(config, shards)
    else:
        _check_once(method, given)
    monitor = "; with weight 0 one is measured" if grouped else ""
    unread = f"config.rewards is set, but {method} asks no rewards{monitor}"
    if config.rewards and not judged and not grouped:
        raise UserError(unread)
    found = rewards([_plain(one) for one in config.rewards], "config.rewards")
    with_a_say = [reward for reward in found if reward.weight]
    if not grouped and len(with_a_say) < len(found):
        raise UserError(f"config.rewards: one of weight 0 has no say, and {method} does not log it")
    if not judged:
        if with_a_say:
            raise UserError(unread)
        if not grouped and given["n"] not in (None, 1):
            raise UserError(f"config.rollout.n = {given['n']}: {method} samples one answer")
        if not grouped and given["max_missing"] != defaults().rollout.max_missing:
            raise UserError(f"config.rollout.max_missing is set, but {method} asks no rewards")
        return found
    if not with_a_say:
        raise UserError(
            f"config.rewards: {method} needs a judge of answers, one whose weight is not 0, for "
            "example [{'name': 'length', 'target': 50}]"
        )
    if given["n"] == 1 and bound.compares:
        raise UserError(f"config.rollout.n = {given['n']}: {method} compares at least 2 answers")
    if given["temperature"] == 0:
        raise UserError(
            "config.rollout.temperature = 0 gives the same answer each time: nothing to compare"
        )
    return found


def make_rollout(
    config: Any,
    bound: Bound,
    judges: tuple[Reward, ...],
    bundle: Bundle,
    pipeline: Pipeline,
    compute: Compute,
) -> Rollout | None:
    """What the stages sample and judge with; None where none does.

    T holds the longest example and the longest prompt with the longest answer: one shape for the
    whole run.

    Args:
      config: the whole config.
      bound: the method.
      judges: from `check_rollout`.
      bundle: the policy.
      pipeline: the data.
      compute: dtype of activations and cache.

    Raises:
      UserError: a prompt that leaves no room for an answer; a column that a reward needs is not
        there.
    """
    if not any(stage.sequences for stage in bound.stages):
        return None
    given = config.rollout.to_dict()
    room = bundle.model.config.max_positions
    longest = asked = 0
    for part in (pipeline.examples, pipeline.held_out):
        if part is None:
            continue
        prompts = int(part.prompts.max())
        if prompts >= room:
            where = part.where(int(np.argmax(part.prompts)))
            raise UserError(
                f"{where}: a prompt of {prompts} tokens leaves no room in the model's {room} "
                "positions; lower config.data.max_length and set config.data.truncate"
            )
        most = min(prompts + given["max_tokens"], room)
        asked, longest = max(asked, most), max(longest, most, int(part.longest.max()))
    given["stop_strings"] = tuple(given["stop_strings"])
    template = None
    if given["environment"] is not None:
        given["environment"] = environment(_plain(given["environment"]))
        template = Template(bundle.tokenizer, config.data.chat_template)
    rollout = Rollout(
        **{**given, **vars(sizes(config, judges, longest))},
        template=template,
        accumulate=config.accumulate,
        prompts_once=pipeline.examples.prompts_once,
        compares=bound.compares,
        longest=asked,
        examples=pipeline.examples,
        held_out=pipeline.held_out,
        tokenizer=bundle.tokenizer,
        stop_ids=tuple(bundle.stop_ids),
        compute=compute,
        seed=config.seed,
    )
    if judges:
        columns = {*rollout.columns_of(training=True), "completion_tokens"}
        if rollout.environment is not None:
            columns |= {"turns", "environment_reward"}
        from_each(functools.partial(_check_judges, judges, columns))
    return rollout


def _check_judges(judges: Sequence[Reward], columns: set[str]) -> None:
    """Checks that rewards can judge rows of these columns, on this machine."""
    for one in judges:
        ready(one)
        accepted(one.function, dict.fromkeys(columns), f"config.rewards: {one.name}")


def sizes(config: Any, judges: tuple[Reward, ...], longest: int) -> Sizes:
    """How much a rollout writes.

    Args:
      config: the whole config.
      judges: from `check_rollout`.
      longest: tokens of the longest example, and of the longest prompt with the longest answer.
    """
    given = {name: config.rollout[name] for name in _SIZES}
    given["n"] = given["n"] or (_SAMPLES if any(one.weight for one in judges) else 1)
    length = -(-longest // _ROUND_LENGTH) * _ROUND_LENGTH
    return Sizes(**given, rewards=judges, length=length)


def _check_groups(config: Any, given: dict[str, Any], gradient: bool) -> None:
    """Of groups: their environment is known; a policy gradient scores what was sampled from."""
    if given["environment"] is not None:
        environment(_plain(given["environment"]))
    for name in ("top_k", "top_p"):
        if gradient and given[name] is not None:
            raise UserError(
                f"config.rollout.{name}: a policy gradient scores the distribution that was "
                "sampled from, all tokens at the temperature; leave it out"
            )
    if gradient and given["temperature"] == 0:
        raise UserError(
            "config.rollout.temperature = 0: a policy gradient scores logits divided by it, and "
            "greedy answers are all the same: nothing to compare; set it above 0"
        )


def _check_parts(config: Any, shards: int) -> None:
    """Of groups: the prompts of each minibatch divide over shards and micro-batches."""
    parts, batch = config.rollout.minibatches, config.data.batch_size
    unit = parts * shards * config.accumulate
    if batch is not None and batch % unit:
        raise UserError(
            f"config.data.batch_size = {batch} prompts is not a multiple of {unit} = {parts} "
            f"minibatches x {shards} shards x {config.accumulate} micro-batches; next is "
            f"{-(-batch // unit) * unit}, or lower config.accumulate or rollout.minibatches"
        )


def _check_once(method: str, given: dict[str, Any]) -> None:
    """Of methods whose answers serve one step."""
    fixed = defaults().rollout
    for name in ("epochs", "minibatches", "eval_temperature", "environment", "turns"):
        if given[name] != fixed[name]:
            raise UserError(f"config.rollout.{name} is set, but {method} does not read it")


def _check_ranges(given: dict[str, Any]) -> None:
    top_k, top_p = given["top_k"], given["top_p"]
    wrong = {
        "n": ("at least 1", given["n"] is not None and given["n"] < 1),
        "max_tokens": ("at least 1", given["max_tokens"] < 1),
        "temperature": ("not negative", not given["temperature"] >= 0),
        "eval_temperature": ("not negative", not given["eval_temperature"] >= 0),
        "rows": ("at least 1", given["rows"] < 1),
        "turns": ("at least 1", given["turns"] < 1),
        "epochs": ("at least 1", given["epochs"] < 1),
        "minibatches": ("at least 1", given["minibatches"] < 1),
        "max_missing": ("from 0 to 1", not 0 <= given["max_missing"] <= 1),
        "top_k": ("at least 1", top_k is not None and top_k < 1),
        "top_p": ("in (0, 1]", top_p is not None and not 0 < top_p <= 1),
    }
    check_values(given, wrong, "config.rollout.")


def _plain(value: Any) -> Any:
    """A name, or a mapping as a dict: a config may hold a group of its own."""
    return value.to_dict() if hasattr(value, "to_dict") else value
