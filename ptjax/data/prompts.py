"""Rows of any form to what a model is asked."""

from typing import Any, NamedTuple

from ptjax.data.formats import read_conversation
from ptjax.data.messages import BadForm, Message, read_messages, read_tools
from ptjax.data.rows import Row

_READ = {
    "prompt": ("prompt", "completion"),
    "messages": ("messages",),
    "sharegpt": ("conversations", "system"),
    "alpaca": ("instruction", "input", "output", "system", "history"),
}
"""The columns that a format is read from."""


class Prompt(NamedTuple):
    """What one row asks."""

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

    @property
    def messages(self) -> list[Message]:
        """The conversation; a text is what the user says."""
        if isinstance(self.asked, str):
            return [{"role": "user", "content": self.asked}]
        return self.asked

    def facts(self) -> dict[str, Any]:
        """All that a reward may read of the row: its columns, `messages` and `given`."""
        return {**self.columns, "messages": self.messages, "given": self.given}


def read_prompt(row: Row, form: str, where: str) -> Prompt:
    """What a row asks; of a whole conversation, its last answer left off.

    Args:
      row: under our names for its columns.
      form: a format of the kind "prompts".
      where: file and line.

    Raises:
      BadForm: a column is of the wrong type, or nothing is asked.

    """
    asked, given = _asked(row, form)
    if isinstance(asked, list):
        asked = [{k: v for k, v in message.items() if k != "trained"} for message in asked]
        if not asked or asked[-1]["role"] not in ("user", "tool"):
            raise BadForm("the prompt does not end where the assistant speaks")
    if not (asked if isinstance(asked, str) else asked[-1]["content"]).strip():
        raise BadForm("the prompt is empty")
    tools = read_tools(row["tools"]) if row.get("tools") else None
    if tools and isinstance(asked, str):
        raise BadForm("'tools' needs a prompt of messages")
    read = {"tools", *_READ["prompt"], *_READ["messages"], *_READ[form]}
    columns = {key: value for key, value in row.items() if key not in read}
    return Prompt(where, asked, tools, given, columns)


def _asked(row: Row, form: str) -> tuple[str | list[Message], str | None]:
    """The prompt, and the row's own answer."""
    if form == "prompt":
        prompt, completion = row["prompt"], row.get("completion")
        if not isinstance(prompt, str):
            prompt = read_messages(prompt, "prompt")
        if completion is not None and not isinstance(completion, str):
            completion = read_messages(completion, "completion")[-1]["content"]
        return prompt, completion
    filled = {"output": "", **row} if form == "alpaca" else row
    messages = read_conversation(filled, form).messages or []
    given = None
    if messages and messages[-1]["role"] == "assistant":
        messages, given = messages[:-1], messages[-1]["content"] or None
    return messages, given
