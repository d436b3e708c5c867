"""A conversation with a model: its messages, its prompt's tokens, its replies."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ptjax.data.messages import BadForm
from ptjax.data.template import Template
from ptjax.errors import UserError
from ptjax.generate.engine import sample
from ptjax.models.load import Bundle

Message = dict[str, Any]


def chat_ids(
    template: Template, messages: Sequence[Message], tools: list[dict[str, Any]] | None = None
) -> list[int]:
    """A conversation up to where the assistant speaks; control strings in content stay text.

    Raises:
      UserError: the template refuses the conversation.
    """
    try:
        return template.prompt_ids(list(messages), tools).tolist()
    except BadForm as error:
        detail = f" ({error.detail})" if error.detail else ""
        raise UserError(f"{error.reason}{detail}") from error


@dataclass
class Conversation:
    """A chat with a model; with one that has no chat template, each prompt is continued as text.

    Attributes:
      bundle: the model.
      settings: keyword arguments of `sample`.
      system: the system message, None for the template's own.
      messages: turns so far, without the system message.
    """

    bundle: Bundle
    settings: Mapping[str, Any]
    system: str | None = None
    messages: list[Message] = field(default_factory=list)

    def __post_init__(self):
        has_one = bool(getattr(self.bundle.tokenizer, "chat_template", None))
        self.template = Template(self.bundle.tokenizer) if has_one else None

    def prompt_ids(self, prompt: str) -> list[int]:
        """Tokens of the conversation with one more turn of the user."""
        if self.template is None:
            return self.bundle.tokenizer.encode(prompt)
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        turn = {"role": "user", "content": prompt}
        return chat_ids(self.template, [*system, *self.messages, turn])

    def reply(self, prompt: str, on_text: Callable[[str], None]) -> bool:
        """Streams the reply and remembers both turns; Ctrl-C ends it early.

        Returns:
          Whether the reply came to its own end.

        Raises:
          UserError: the conversation is too long for the model; it stays as it was.
        """
        ids = self.prompt_ids(prompt)
        heard: list[str] = []

        def hear(_: int, text: str) -> None:
            heard.append(text)
            on_text(text)

        try:
            (done,) = sample(
                self.bundle.model,
                self.bundle.params,
                [ids],
                stop_ids=self.bundle.stop_ids,
                tokenizer=self.bundle.tokenizer,
                on_tokens=hear,
                **self.settings,
            )
            whole = done.finished == "stop"
        except KeyboardInterrupt:
            whole = False
        if self.template is not None:
            said = {"role": "assistant", "content": "".join(heard)}
            self.messages += [{"role": "user", "content": prompt}, said]
        return whole

    def reset(self) -> None:
        """Forgets the turns; the system message stays."""
        self.messages.clear()
