"""Tools: plain functions that a policy calls in its text, and whose results it reads."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ptjax.environments.base import Turn
from ptjax.environments.calculator import calculator
from ptjax.environments.python import python
from ptjax.errors import UserError, did_you_mean
from ptjax.lookup import find
from ptjax.rewards.base import Failed

TOOLS: dict[str, Callable[..., Any]] = {"calculator": calculator, "python": python}
"""Tools by name; others by dotted path."""
FORMS = ("json", "tag")
_JSON = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


class Tools:
    """Answers a turn that calls tools with their results; one that calls none is the last.

    Calls are `<tool_call>{"name": "calculator", "arguments": {"expression": "3 * 4"}}</tool_call>`,
    the form that Qwen and Hermes templates teach, or with `form="tag"`, for models that have not
    learnt it, `<calculator>3 * 4</calculator>`. A closing tag may be left off at the end of a turn,
    so that it can be a stop string. A call that fails is answered with its reason; but a tool that
    raises `ptjax.rewards.base.Failed` could not do its part, and the answer has no reward.

    Args:
      tools: names, or dotted paths of functions of texts.
      form: how a call is written.
      most: characters of a result; the rest is left out.

    Raises:
      UserError: no such tool or form, or no tools; `python`, and no sandbox that holds.
    """

    def __init__(
        self, *, tools: Sequence[str] = ("calculator",), form: str = "json", most: int = 1000
    ):
        if form not in FORMS:
            raise UserError(f"environment tools: form {form!r}{did_you_mean(form, FORMS)}")
        if isinstance(tools, str) or not tools:
            raise UserError(f"environment tools: tools = {tools!r}; a list of names is expected")
        if most < 1:
            raise UserError(f"environment tools: most = {most!r}; it must be at least 1")
        self._tools = {name.rpartition(".")[2]: find(name, TOOLS, "tool") for name in tools}
        self._form, self._most = form, most
        if python in self._tools.values():  # said now, and not when a program is first written
            from ptjax.rewards.sandbox.proof import prove

            prove()

    def reset(self, row: Mapping[str, Any]) -> None:
        """Remembers nothing of a row."""

    def step(self, text: str) -> Turn:
        """The results of a turn's calls, one a line."""
        calls = self._tagged(text) if self._form == "tag" else self._written(text)
        if not calls:
            return Turn(None)
        return Turn("\n".join(self._call(name, given)[: self._most] for name, given in calls))

    def _written(self, text: str) -> list[tuple[str, Any]]:
        found = []
        for body in _JSON.findall(text):
            try:
                call = json.loads(body)
                found.append((str(call["name"]), dict(call.get("arguments") or {})))
            except (ValueError, TypeError, KeyError):
                found.append(("", "a call is JSON with 'name' and 'arguments'"))
        return found

    def _tagged(self, text: str) -> list[tuple[str, Any]]:
        names = "|".join(map(re.escape, self._tools))
        calls = re.findall(rf"<({names})>(.*?)(?:</\1>|\Z)", text, re.DOTALL)
        return [(name, body.strip()) for name, body in calls]

    def _call(self, name: str, given: Any) -> str:
        if not name:
            return f"error: {given}"
        if name not in self._tools:
            return f"error: no tool {name!r}{did_you_mean(name, self._tools)}"
        tool = self._tools[name]
        try:
            return str(tool(**given) if isinstance(given, dict) else tool(given))
        except (UserError, Failed):
            raise
        except Exception as error:
            return f"error: {error}" if str(error) else f"error: {type(error).__name__}"
