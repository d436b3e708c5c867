"""Every form a row may have, and the one form they all become.

Canonical rows, as keyword arguments of `Example`: `text`; or `prompt` and `completion`, both text
or both messages; or `messages`. Messages go with `tools`. A message is a dict of `role` (system,
user, assistant, tool) and `content` (text), and where given `tool_calls`, `reasoning_content`,
`name`, `tool_call_id`, and `trained`, which is False where the row's own loss weight is 0.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from ptjax.data.kinds import KINDS, Kind
from ptjax.data.messages import BadForm, Message, read_messages, read_tools, sharegpt_messages
from ptjax.data.rows import Row
from ptjax.errors import did_you_mean


@dataclasses.dataclass(frozen=True)
class Example:
    """A row in canonical form; what it has not is None."""

    messages: list[Message] | None = None
    prompt: str | list[Message] | None = None
    completion: str | list[Message] | None = None
    text: str | None = None
    tools: list[dict[str, Any]] | None = None


def canonical(row: Row, *, form: str | None = None, columns: Mapping[str, str]) -> Example:
    """Brings one row of conversations or text to canonical form.

    Args:
      row: column name -> value.
      form: the format; None: seen from the columns.
      columns: our column name -> the row's, or a path into it such as `instances.0.output`.

    Raises:
      BadForm: a column is missing or of the wrong type.

    """
    form, row = recognise(row, KINDS["sequences"], form=form, columns=columns)
    return read_conversation(row, form)


def recognise(
    row: Row, kind: Kind, *, form: str | None, columns: Mapping[str, str]
) -> tuple[str, Row]:
    """A row's format, and the row with our names for its columns and without those that are None.

    Raises:
      BadForm: a column is missing.

    """
    renamed = {ours: _column(row, theirs, ours) for ours, theirs in columns.items()}
    if renamed:
        row = {**{k: v for k, v in row.items() if k not in columns.values()}, **renamed}
    row = {key: value for key, value in row.items() if value is not None}
    for ours, others in kind.names.items():
        for theirs in others:
            if ours not in row and theirs in row:
                row = {ours if key == theirs else key: value for key, value in row.items()}
    if form is None:
        form = _detect(set(row), kind)
    else:
        _require(set(row), kind.forms[form])
    return form, row


def read_conversation(row: Row, form: str) -> Example:
    """Reads one of the formats of conversations and text.

    Raises:
      BadForm: a column is of the wrong type.

    """
    return _READERS[form](row)


def read_turns(given: Any, column: str) -> list[Message]:
    """Messages, or the one message that a row gives without a list around it."""
    if isinstance(given, dict):
        given = [given]
    return read_messages(given, column)


def _detect(columns: set[str], kind: Kind) -> str:
    for name, required in kind.forms.items():
        if columns.issuperset(required):
            return name
    there = ", ".join(sorted(columns)) or "none"
    known = {column for required in kind.forms.values() for column in required}
    shared = max(kind.forms.values(), key=lambda required: len(columns.intersection(required)))
    if columns.intersection(shared):
        _require(columns, shared, known)
    near = next((hint for c in sorted(columns) if "mean" in (hint := did_you_mean(c, known))), "")
    *choices, last = (" + ".join(required) for required in kind.forms.values())
    what = "" if kind.name == "sequences" else f" of {kind.name}"
    raise BadForm(
        f"no known format{what}: a row has {', '.join(choices)}, or {last}",
        f"columns: {there}{near}; rename with columns=dict(ours='theirs')",
    )


def _column(row: Row, path: str, ours: str) -> Any:
    """A column by name, or by a path of keys and list positions."""
    value: Any = row
    for key in [path] if path in row else path.split("."):
        if isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        elif isinstance(value, dict) and key in value:
            value = value[key]
        else:
            there = ", ".join(sorted(row))
            raise BadForm(f"column {path!r} is missing", f"for {ours!r}; columns: {there}")
    return value


def _require(columns: set[str], required: tuple[str, ...], known: Iterable[str] = ()) -> None:
    for name in required:
        if name not in columns:
            there = ", ".join(sorted(columns)) or "none"
            hint = did_you_mean(name, columns.difference(known))
            near = hint if "mean" in hint else ""
            raise BadForm(f"column {name!r} is missing", f"columns: {there}{near}")


def _text(row: Row, column: str) -> str:
    value = row.get(column, "")
    if not isinstance(value, str):
        raise BadForm(f"column {column!r} is not text", f"but {type(value).__name__}")
    return value


def _from_messages(row: Row) -> Example:
    return Example(messages=read_messages(row["messages"], "messages"), tools=_tools(row))


def _from_prompt_completion(row: Row) -> Example:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return Example(prompt=prompt, completion=completion)
    if isinstance(prompt, str) or isinstance(completion, str):
        raise BadForm("'prompt' and 'completion' must both be text or both be messages")
    return Example(
        prompt=read_messages(prompt, "prompt"),
        completion=read_messages(completion, "completion"),
        tools=_tools(row),
    )


def _from_text(row: Row) -> Example:
    return Example(text=_text(row, "text"))


def _from_sharegpt(row: Row) -> Example:
    messages = sharegpt_messages(row["conversations"])
    system = _text(row, "system")
    if system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    return Example(messages=messages, tools=_tools(row))


def _from_alpaca(row: Row) -> Example:
    messages: list[Message] = []
    if system := _text(row, "system"):
        messages.append({"role": "system", "content": system})
    for turn in row.get("history") or []:
        if not (isinstance(turn, list | tuple) and len(turn) == 2):
            raise BadForm("'history' is not a list of (question, answer) pairs")
        messages.append({"role": "user", "content": str(turn[0])})
        messages.append({"role": "assistant", "content": str(turn[1])})
    parts = (_text(row, "instruction"), _text(row, "input"))
    messages.append({"role": "user", "content": "\n\n".join(part for part in parts if part)})
    messages.append({"role": "assistant", "content": _text(row, "output")})
    return Example(messages=messages)


def _tools(row: Row) -> list[dict[str, Any]] | None:
    return read_tools(row["tools"]) if row.get("tools") else None


_READERS = {
    "messages": _from_messages,
    "prompt_completion": _from_prompt_completion,
    "text": _from_text,
    "sharegpt": _from_sharegpt,
    "alpaca": _from_alpaca,
}
