"""Renders conversations through a chat template, and tells its own text from theirs."""

import itertools
import re
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from ptjax.data.control import Tokens
from ptjax.data.messages import BadForm, Message
from ptjax.errors import UserError
from ptjax.models.tokenizer import template_text

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_KNOWS_THOUGHTS = re.compile(r"\b(reasoning_content|thinking)\b")
_SPEAKERS = ("assistant", "system")
"""Roles that may write the marks of `ptjax.data.control.SPOKEN`."""
_CALL = {"id": "a00000000", "type": "function", "function": {"name": "a", "arguments": {}}}
_TOOL_TURNS = [
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    {"role": "tool", "content": "a", "name": "a", "tool_call_id": _CALL["id"]},
]
_TOOLS = [{"type": "function", "function": {"name": "a", "description": "a", "parameters": {}}}]
_REFUSALS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What a template's expressions may raise beside jinja's own errors."""
Tools = list[dict[str, Any]] | None


class Rendering(NamedTuple):
    """What a template made of messages."""

    text: str
    marks: list[tuple[int, int]]
    """Characters inside `{% generation %}`."""
    genuine: list[tuple[int, int]] | None
    """Control strings the template wrote; None: all that there are, content holds none."""


class Template:
    """A tokenizer's or the user's chat template.

    Args:
      tokenizer: a fast `transformers` tokenizer.
      given: a Jinja template, the path of one, or None for the tokenizer's own.

    Raises:
      UserError: no template, or one that does not compile.

    """

    def __init__(self, tokenizer: Any, given: str | None = None):
        source = read_template(tokenizer, given)
        self._source: str = source
        self.has_marks = bool(_MARKS.search(source))
        self._special = dict(tokenizer.special_tokens_map)
        self._check_compiles()
        self.tokens = Tokens(tokenizer, self._scaffold())

    def prepare(self, messages: list[Message], tools: Tools) -> list[Message]:
        """Puts reasoning into content where the template reads none; refuses what would be lost."""
        if tools and not re.search(r"\btools\b", self._source):
            raise BadForm("the chat template does not know tools")
        made = []
        for message in messages:
            message = {key: value for key, value in message.items() if key != "trained"}
            if message.get("tool_calls") and "tool_calls" not in self._source:
                raise BadForm("the chat template does not know tool calls")
            if "reasoning_content" in message and not _KNOWS_THOUGHTS.search(self._source):
                thoughts = message.pop("reasoning_content").strip("\n")
                message["content"] = f"<think>\n{thoughts}\n</think>\n\n{message['content']}"
            made.append(message)
        return made

    def render(self, messages: list[Message], tools: Tools, *, prompt: bool = False) -> Rendering:
        """The conversation's text.

        Args:
          messages: from `prepare`.
          tools: what the assistant may call.
          prompt: end with what stands before an assistant's turn.

        Raises:
          BadForm: the template refuses the messages, or moves control strings of the content.

        """
        text, marks = self._render(messages, tools, prompt)
        if not self._suspicious(messages) and not self._suspicious(tools):
            return Rendering(text, marks, None)
        restored = self.tokens.undisguised(text)
        for everywhere in (True, False):
            hidden = self._disguised(messages, everywhere), self._disguised(tools, everywhere)
            other, _ = self._render(*hidden, prompt)
            if self.tokens.undisguised(other) == restored:
                genuine, seen = self.tokens.places(other), self.tokens.places(text)
                return Rendering(text, marks, None if genuine == seen else genuine)
        raise BadForm("the chat template rewrites content that holds control strings")

    def prompt_ids(self, messages: list[Message], tools: Tools = None) -> Int[np.ndarray, " T"]:
        """A conversation's tokens up to where the assistant speaks, as they are sampled from.

        Raises:
          BadForm: the template refuses the conversation.

        """
        text, _, genuine = self.render(self.prepare(messages, tools), tools, prompt=True)
        if genuine is None:
            return self.tokens.encode([text])[0][0]
        return self.tokens.encode_around(text, genuine)[0]

    def _render(self, messages: Any, tools: Any, prompt: bool) -> tuple[str, list[tuple[int, int]]]:
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, marks = render_jinja_template(
                conversations=[messages],
                tools=tools,
                chat_template=self._source,
                return_assistant_tokens_mask=self.has_marks,
                add_generation_prompt=prompt,
                **self._special,
            )
        except (jinja2.TemplateError, *_REFUSALS) as error:
            raise BadForm("the chat template refuses the conversation", str(error)) from None
        spans: list[Any] = list(marks[0]) if self.has_marks else []
        return texts[0], [(start, end) for start, end in spans]

    def _suspicious(self, value: Any, spoken: bool = False) -> bool:
        """Whether a control string could begin within messages or tools, roles aside."""
        if isinstance(value, str):
            return self.tokens.suspicious(value, spoken=spoken)
        if isinstance(value, dict):
            spoken = value.get("role") in _SPEAKERS or spoken
            return any(
                self._suspicious(key) or (key != "role" and self._suspicious(item, spoken))
                for key, item in value.items()
            )
        return isinstance(value, list) and any(self._suspicious(item, spoken) for item in value)

    def _disguised(self, value: Any, everywhere: bool, spoken: bool = False) -> Any:
        if isinstance(value, str):
            return self.tokens.disguise(value, spoken=spoken, everywhere=everywhere)
        if isinstance(value, dict):
            spoken = value.get("role") in _SPEAKERS or spoken
            return {
                self._disguised(key, False): item
                if key == "role"
                else self._disguised(item, everywhere, spoken)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self._disguised(item, everywhere, spoken) for item in value]
        return value

    def _check_compiles(self) -> None:
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        try:
            self._render([{"role": "user", "content": "a"}], None, False)
        except BadForm:
            source = _MARKS.sub("", self._source)
            source = re.sub(r"\{%-?\s*endgeneration\s*-?%\}", "", source)
            try:
                extensions = ["jinja2.ext.loopcontrols"]
                ImmutableSandboxedEnvironment(extensions=extensions).from_string(source)
            except jinja2.TemplateSyntaxError as error:
                where = f"line {error.lineno}: {error.message}"
                raise UserError(f"the chat template does not compile: {where}") from None

    def _scaffold(self) -> str:
        """What the template writes around any conversation, with tools and without."""
        system, user, assistant = (
            {"role": role, "content": "a"} for role in ("system", "user", "assistant")
        )
        chats = [[user, assistant, user], [user, *_TOOL_TURNS, assistant, user]]
        found = []
        for chat, tools in itertools.product(chats, (None, _TOOLS)):
            for conversation in ([system, *chat], chat):
                try:
                    found.append(self._render(conversation, tools, True)[0])
                    break
                except BadForm:
                    continue
        return "\n".join(found)


def read_template(tokenizer: Any, given: str | None) -> str:
    """The Jinja source: the one given, or the content of its path, or the tokenizer's.

    Raises:
      UserError: there is none.

    """
    if given is None:
        template = getattr(tokenizer, "chat_template", None)
        if isinstance(template, dict):
            template = template.get("default")
        if not template:
            raise UserError(
                "the tokenizer has no chat template: give one as config.data.chat_template "
                "(a Jinja template or its path), or train on prompt/completion or text"
            )
        return template
    return template_text(given)
