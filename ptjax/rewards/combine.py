"""Rewards made of rewards: a rubric of several criteria, and the one that a row names."""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ptjax.errors import UserError, did_you_mean
from ptjax.rewards.base import Failed, Reward, accepted, settings_of
from ptjax.rewards.score import ask

Value = float | None | Exception


def rubric(
    prompts: Sequence[str],
    completions: Sequence[str],
    rubric: Sequence[Any] | None = None,
    *,
    rewards: Sequence[Reward] = (),
    reward: Reward | None = None,
    **columns: Sequence[Any],
) -> list[Value]:
    """Σ w·value over the criteria that do not abstain, divided by the sum of their weights above 0.

    Args:
      prompts: texts.
      completions: texts.
      rubric: the row's own criteria, texts or `{"criterion": text, "weight": 1.0}`; as text, JSON
        of that, or one criterion.
      rewards: criteria of all rows, each with its weight; one below 0 is a penalty.
      reward: is asked about each of the row's own, with its text as the column `criterion`; a
        `judge`, say.
      **columns: the row's other columns, for the rewards.

    Returns:
      From 0 to 1 for values from 0 to 1 and no penalties; None where all criteria abstain; a
      failure where one fails, since what is left of a rubric does not compare with the whole, and
      where the row's own make no sense.

    Raises:
      UserError: neither kind of criteria is given.
    """
    if not rewards and reward is None:
        raise UserError("reward rubric: give 'rewards', or the 'reward' that judges a row's rubric")
    parts: list[list[tuple[float, float | str | None]]] = [[] for _ in completions]
    for one, values in zip(rewards, ask(rewards, prompts, completions, columns), strict=True):
        for i, value in enumerate(values):
            parts[i].append((one.weight, _named(one, value)))
    if reward is not None:
        owned = []
        for i, own in enumerate(rubric or ()):
            try:
                owned += [(i, *one) for one in _criteria(own)]
            except Failed as failed:
                parts[i].append((1.0, str(failed)))
        rows = [i for i, *_ in owned]
        some = {name: _at(column, rows) for name, column in columns.items()}
        some["criterion"] = [text for _, text, _ in owned]
        values = ask([reward], _at(prompts, rows), _at(completions, rows), some)[0]
        for (i, _, weight), value in zip(owned, values, strict=True):
            parts[i].append((weight, _named(reward, value)))
    return [_total(part) for part in parts]


def by_row(
    prompts: Sequence[str],
    completions: Sequence[str],
    scorer: Sequence[Any],
    *,
    rewards: Mapping[str, Reward],
    may_set: Mapping[str, Sequence[str]] | None = None,
    **columns: Sequence[Any],
) -> list[Value]:
    """What the reward that the row names says of its completions.

    Data choose among what the config allows, and no more: a row's name is a key of `rewards`, never
    a path, and a setting that it gives is one that `may_set` lists.

    Args:
      prompts: texts.
      completions: texts.
      scorer: a key of `rewards`, or `{"name": key}` with settings; as text, JSON of that.
      rewards: by the name that rows use for it, times its weight.
      may_set: by that name, the settings that a row may give.
      **columns: the row's other columns, for the rewards.

    Returns:
      Values; None where the row names none; a failure where it names or sets what is not allowed.

    Raises:
      UserError: `may_set` names what is not there.
    """
    free = {name: tuple(some) for name, some in (may_set or {}).items()}
    for name, some in free.items():
        if name not in rewards:
            raise UserError(f"reward by_row: may_set: {name!r}{did_you_mean(name, rewards)}")
        known = settings_of(rewards[name].function)
        for setting in some:
            if setting not in known:
                raise UserError(
                    f"reward by_row: may_set: {name}: {setting!r}{did_you_mean(setting, known)}"
                )
    found: list[Value] = [None] * len(completions)
    alike: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, given in enumerate(scorer):
        try:
            if (chosen := _chosen(given, rewards, free)) is not None:
                alike[chosen].append(i)
        except Failed as failed:
            found[i] = failed
    for (name, settings), rows in alike.items():
        base = rewards[name]
        one = dataclasses.replace(base, settings={**base.settings, **json.loads(settings)})
        some = {key: _at(column, rows) for key, column in columns.items()}
        values: list[float | str | None]
        try:
            accepted(one.function, some, name)
            values = ask([one], _at(prompts, rows), _at(completions, rows), some)[0]
        except UserError as error:
            if settings == "{}" and ": no column" not in str(error):
                raise
            values = [str(error)] * len(rows)  # a mistake of the row, not of the config
        for i, value in zip(rows, values, strict=True):
            if isinstance(value, str):
                found[i] = Failed(f"{name}: {value.removeprefix(f'{name}: ')}")
            else:
                found[i] = None if value is None else value * one.weight
    return found


def _at(column: Sequence[Any], rows: Sequence[int]) -> list[Any]:
    return [column[i] for i in rows]


def _chosen(
    given: Any, rewards: Mapping[str, Reward], free: Mapping[str, Sequence[str]]
) -> tuple[str, str] | None:
    """The name of a row's scorer, and its settings as JSON; rows alike in both go together."""
    if isinstance(given, str) and given.lstrip().startswith("{"):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise Failed(f"scorer is no JSON: {error}") from None
    settings = dict(given) if isinstance(given, Mapping) else {"name": given}
    name = settings.pop("name", None)
    if given is None:
        return None
    if not isinstance(name, str) or name not in rewards:
        raise Failed(f"scorer {name!r} is not allowed{did_you_mean(str(name), rewards)}")
    settings = {key: value for key, value in settings.items() if value is not None}
    for key in settings:
        if key not in free.get(name, ()):
            raise Failed(f"scorer {name!r} may not set {key!r}")
    return name, json.dumps(settings, sort_keys=True)


def _criteria(own: Any) -> list[tuple[str, float]]:
    """A row's criteria with their weights."""
    if isinstance(own, str) and own.lstrip().startswith(("[", "{")):
        try:
            own = json.loads(own)
        except ValueError as error:
            raise Failed(f"rubric is no JSON: {error}") from None
    if not own:
        return []
    if not isinstance(own, str | Mapping | Sequence):
        raise Failed(f"rubric {own!r} is neither text nor a list")
    return [_criterion(one) for one in ([own] if isinstance(own, str | Mapping) else own)]


def _criterion(one: Any) -> tuple[str, float]:
    given = one if isinstance(one, Mapping) else {"criterion": one}
    text, weight = given.get("criterion"), given.get("weight")
    if not isinstance(text, str) or not text.strip():
        raise Failed(f"criterion {text!r} is no text")
    try:
        return text, 1.0 if weight is None else float(weight)
    except (TypeError, ValueError):
        raise Failed(f"weight {weight!r} of criterion {text!r} is no number") from None


def _named(reward: Reward, value: float | str | None) -> float | str | None:
    return f"{reward.name}: {value}" if isinstance(value, str) else value


def _total(parts: Sequence[tuple[float, float | str | None]]) -> Value:
    for _, value in parts:
        if isinstance(value, str):
            return Failed(value)
    given = [(weight, value) for weight, value in parts if isinstance(value, float)]
    whole = sum(weight for weight, _ in given if weight > 0)
    if not given:
        return None
    return sum(weight * value for weight, value in given) / whole if whole else Failed("no weight")
