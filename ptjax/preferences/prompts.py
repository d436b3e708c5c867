"""Rows of any source to what the model is asked."""

import hashlib
import json
from typing import Any, NamedTuple

from ptjax.data.config import SourceConfig
from ptjax.data.formats import canonical
from ptjax.data.messages import BadForm, Message, read_messages, read_tools
from ptjax.data.rows import BadRow, Row
from ptjax.data.sources import open_source
from ptjax.errors import UserError

_WHOLE = {
    "messages": ("messages", ()),
    "conversations": ("sharegpt", ("system",)),
    "instruction": ("alpaca", ("input", "output", "system", "history")),
}
"""Of a column that holds a prompt with its answer: the format, and the columns beside it."""
_READ = ("prompt", "completion", "messages", "tools")


class Prompt(NamedTuple):
    """One row."""

    where: str
    """File and line."""
    asked: str | list[Message]
    """Text, or a conversation up to where the assistant speaks."""
    tools: list[dict[str, Any]] | None
    given: str | None
    """The answer that the row itself has."""
    columns: dict[str, Any]
    """The row's other columns."""

    @property
    def text(self) -> str:
        """What is asked, for functions of text: the last message of a conversation."""
        return self.asked if isinstance(self.asked, str) else self.asked[-1]["content"]


def read_prompts(source: SourceConfig) -> list[Prompt]:
    """Every prompt of a source, in its order.

    Raises:
      UserError: the source cannot be read, or a row of it has no prompt.
    """
    rows = open_source(source)
    prompts = []
    for i, row in enumerate(rows.read(0, len(rows))):
        if isinstance(row, BadRow):
            raise UserError(str(row))
        try:
            prompts.append(_prompt(row, rows.where(i)))
        except BadForm as error:
            raise UserError(str(BadRow(rows.where(i), error.reason, error.detail))) from error
    return prompts


def digest(prompts: list[Prompt]) -> str:
    """SHA-256 of what the prompts say, wherever they lie."""
    whole = hashlib.sha256()
    for prompt in prompts:
        whole.update(json.dumps(prompt[1:], sort_keys=True, default=str).encode() + b"\n")
    return whole.hexdigest()


def _prompt(row: Row, where: str) -> Prompt:
    row = {key: value for key, value in row.items() if value is not None}
    asked, given, read = _asked(row)
    if isinstance(asked, list):
        asked = [{k: v for k, v in message.items() if k != "trained"} for message in asked]
        if not asked or asked[-1]["role"] not in ("user", "tool"):
            raise BadForm("the prompt does not end where the assistant speaks")
    if not (asked if isinstance(asked, str) else asked[-1]["content"]).strip():
        raise BadForm("the prompt is empty")
    tools = read_tools(row["tools"]) if row.get("tools") else None
    if tools and isinstance(asked, str):
        raise BadForm("'tools' needs a prompt of messages")
    columns = {key: value for key, value in row.items() if key not in {*_READ, *read}}
    return Prompt(where, asked, tools, given, columns)


def _asked(row: Row) -> tuple[str | list[Message], str | None, tuple[str, ...]]:
    """The prompt, the row's own answer, and the columns that they were read from."""
    if "prompt" in row:
        prompt, completion = row["prompt"], row.get("completion")
        if not isinstance(prompt, str):
            prompt = read_messages(prompt, "prompt")
        if completion is not None and not isinstance(completion, str):
            completion = read_messages(completion, "completion")[-1]["content"]
        return prompt, completion, ()
    column = next((column for column in _WHOLE if column in row), None)
    if column is None:
        there = ", ".join(sorted(row)) or "none"
        raise BadForm(
            "no prompt: a row has prompt, messages, conversations or instruction",
            f"columns: {there}",
        )
    form, others = _WHOLE[column]
    filled = {"output": "", **row} if form == "alpaca" else row
    messages = canonical(filled, form=form, columns={}).messages or []
    given = None
    if messages and messages[-1]["role"] == "assistant":
        messages, given = messages[:-1], messages[-1]["content"] or None
    return messages, given, (column, *others)
