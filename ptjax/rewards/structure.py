"""Rewards of a completion's form: tags that hold its parts, JSON by a schema."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ptjax.errors import UserError
from ptjax.rewards.base import Failed, needs

_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)


def format(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    tags: Sequence[str] = ("think", "answer"),
    opened: bool = False,
    outside: bool = False,
) -> list[float]:
    """1 where each tag opens and closes exactly once, in order, and holds something; else 0.

    The format reward of 2501.12948, section 2.2.2: `<think>...</think><answer>...</answer>`.

    Args:
      prompts: not read.
      completions: texts.
      tags: their names, in order; one is not inside another.
      opened: whether the prompt's template has opened the first.
      outside: whether more than white space may stand outside of them.

    Returns:
      1 or 0.

    Raises:
      UserError: no tags, or one that is no name.
    """
    if isinstance(tags, str) or not tags or len({*tags}) < len(tags):
        raise UserError(f"reward format: tags = {tags!r}; a list of different names is expected")
    for tag in tags:
        if not isinstance(tag, str) or not re.fullmatch(r"[\w.|-]+", tag):
            raise UserError(f"reward format: tag {tag!r} is no name (as 'think', without < and >)")
    marks = [f"<{slash}{tag}>" for tag in tags for slash in ("", "/")]
    pattern = re.compile("(" + "|".join(map(re.escape, marks)) + ")")
    found = []
    for text in completions:
        parts = pattern.split(f"{marks[0]}{text}" if opened else text)
        between, said = parts[::2], parts[1::2]
        right = said == marks and all(inside.strip() for inside in between[1::2])
        bare = outside or not any(part.strip() for part in between[::2])
        found.append(float(right and bare))
    return found


def json_schema(
    prompts: Sequence[str],
    completions: Sequence[str],
    json_schema: Sequence[Any] | None = None,
    *,
    schema: Mapping[str, Any] | None = None,
    fenced: bool = True,
) -> list[float | None | Exception]:
    """1 where a completion is JSON that a schema (draft 2020-12, or as `$schema` says) accepts.

    Args:
      prompts: not read.
      completions: texts.
      json_schema: the row's schema, a dict or its text, in place of `schema`.
      schema: of the rows that have none.
      fenced: whether the last fenced block of a text may be the JSON; else it is the whole text.

    Returns:
      1 or 0; None for a row without a schema; a failure where the row's is none, or refers to
      another document (nothing is fetched).

    Raises:
      UserError: `schema` is no schema; jsonschema is not installed.
    """
    ready()
    import jsonschema as library

    default = None
    if schema is not None:
        try:
            default = _validator(schema)
        except library.SchemaError as error:
            raise UserError(f"reward json_schema: schema: {error.message}") from error
    found: list[float | None | Exception] = []
    for i, text in enumerate(completions):
        given = json_schema[i] if json_schema else None
        try:
            validator = default if given is None else _validator(given)
            found.append(None if validator is None else float(_accepted(text, validator, fenced)))
        except Exception as error:  # of the row's schema: text that is no JSON, an open reference
            found.append(Failed(f"the row's schema: {type(error).__name__}: {error}"))
    return found


def ready(**_: Any) -> None:
    """Refuses before a run what it could not be judged with."""
    needs("jsonschema", "jsonschema", "reward json_schema")


def _validator(given: Any) -> Any:
    import referencing
    from jsonschema import validators

    schema = json.loads(given) if isinstance(given, str) else _bare(given)
    kind = validators.validator_for(schema, default=validators.Draft202012Validator)
    kind.check_schema(schema)
    return kind(schema, registry=referencing.Registry())


def _bare(given: Any) -> Any:
    """Without the Nones that a table puts where rows' schemas differ in keys."""
    if isinstance(given, Mapping):
        return {key: _bare(value) for key, value in given.items() if value is not None}
    return [_bare(value) for value in given] if isinstance(given, list | tuple) else given


def _accepted(text: str, validator: Any, fenced: bool) -> bool:
    blocks = _FENCED.findall(text) if fenced else []
    try:
        value = json.loads(blocks[-1] if blocks else text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return False
    return validator.is_valid(value)


def _no_number(name: str) -> Any:
    """NaN and Infinity, which Python reads, are not JSON."""
    raise ValueError(name)
