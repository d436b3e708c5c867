"""Which characters of a conversation are trained, and how many sequences that takes.

A turn's characters are those that the template adds to the prompt it would have been sampled
from, up to the control token that ends the turn. That is checked against the whole rendering,
turn by turn. Where a template shows a turn otherwise once later turns follow it (earlier thinking
stripped), the turn gets a sequence of its own, ending with it: trained as it would be sampled.
"""

import os
from typing import NamedTuple

from ptjax.data.messages import BadForm, Message
from ptjax.data.template import Rendering, Template, Tools

_THINK = "<think>"


class Sequence(NamedTuple):
    """One text to train on."""

    text: str
    spans: list[tuple[int, int]]
    """Characters that are trained."""
    genuine: list[tuple[int, int]] | None
    """Where control tokens stand; None: wherever there is a control string."""
    ends: bool = True
    """Whether the text ends with a control token, so that none has to be added."""
    starts: tuple[int, ...] = ()
    """Where what is sampled begins: no token may reach across."""


class _Turn(NamedTuple):
    text: str
    prompt: str
    start: int
    end: int
    spans: list[tuple[int, int]]
    genuine: list[tuple[int, int]] | None
    ends: bool


def split_turns(
    template: Template,
    messages: list[Message],
    tools: Tools = None,
    *,
    train_on: str = "assistant",
    first: int = 0,
) -> list[Sequence]:
    """The sequences that train a conversation; none if it has no turn to train.

    Args:
      template: the chat template.
      messages: canonical messages.
      tools: what the assistant may call.
      train_on: "assistant", "last" or "all".
      first: index of the first message that may be trained.

    Raises:
      BadForm: the template refuses the conversation, or a turn cannot be told from its prompt.

    """
    prepared = template.prepare(messages, tools)
    if train_on == "all":
        whole = template.render(prepared, tools)
        end, ends = end_of_turn(template, whole, 0)
        text = whole.text if ends else whole.text[:end]
        return [Sequence(text, [(0, len(text))], whole.genuine, ends)]
    trained = [
        i
        for i, message in enumerate(messages)
        if i >= first and message["role"] == "assistant" and message.get("trained", True)
    ]
    if train_on == "last":
        trained = [i for i in trained[-1:] if i == _last_assistant(messages)]
    turns = {i: _turn(template, prepared, tools, i) for i in trained}
    sequences = []
    while turns:
        _, host = turns.popitem()
        held = [host, *(turns.pop(i) for i in list(turns) if _part_of(turns[i], host))]
        spans = sorted(span for turn in held for span in turn.spans)
        starts = tuple(sorted(turn.start for turn in held))
        sequences.append(Sequence(host.text[: host.end], spans, host.genuine, host.ends, starts))
    return sequences[::-1]


def end_of_turn(template: Template, rendering: Rendering, start: int) -> tuple[int, bool]:
    """Where the turn that begins at `start` ends, and whether a control token ends it.

    Control tokens right after one another end it together; those after white space are the
    template's own affair and no part of the turn.
    """
    text, end, ended = rendering.text, len(rendering.text), False
    starts = None if rendering.genuine is None else {begin for begin, _ in rendering.genuine}
    position = len(text)
    while True:
        body = text[:position].rstrip()
        if body.endswith(template.tokens.ends):
            string = next(s for s in template.tokens.ends if body.endswith(s))
            begin = len(body) - len(string)
            if begin >= start and (starts is None or begin in starts):
                if len(body) < position or not ended:
                    end, ended = len(body), True
                position = begin
                continue
        return end, ended


def _last_assistant(messages: list[Message]) -> int:
    return max(i for i, message in enumerate(messages) if message["role"] == "assistant")


def _part_of(turn: _Turn, host: _Turn) -> bool:
    """Whether the host's sequence shows the turn just as it would be sampled."""
    return host.prompt.startswith(turn.text[: turn.end]) and host.start >= turn.end


def _turn(template: Template, messages: list[Message], tools: Tools, index: int) -> _Turn:
    """One assistant turn as the end of a conversation."""
    if index == 0:
        raise BadForm("the conversation begins with the assistant: there is no prompt before it")
    prompt = template.render(messages[:index], tools, prompt=True)
    whole = template.render(messages[: index + 1], tools)
    start = len(prompt.text)
    if not whole.text.startswith(prompt.text):
        if prompt.text.rstrip().endswith(_THINK):
            return _thinking_turn(template, messages[index], prompt, whole)
        before = template.render(messages[:index], tools).text
        start = len(os.path.commonprefix([whole.text, prompt.text]))
        if not whole.text.startswith(before) or start < len(before):
            raise BadForm("the chat template's assistant turns cannot be told from their prompts")
    end, ends = end_of_turn(template, whole, start)
    if not whole.text[start:end].strip():
        raise BadForm("the chat template leaves nothing of an assistant turn")
    spans = [(start, end)]
    if template.has_marks:
        spans = [(s, e) for s, e in whole.marks if e > start and s < end]
        spans = _with_end(template, whole, spans, end) if ends else spans
    return _Turn(whole.text, prompt.text, start, end, spans, whole.genuine, ends)


def _with_end(
    template: Template, whole: Rendering, spans: list[tuple[int, int]], end: int
) -> list[tuple[int, int]]:
    """Stretches or cuts the last marked span so that it ends with the end-of-turn token."""
    if not spans:
        return spans
    *others, (start, stop) = spans
    between = whole.text[stop:end]
    for string in template.tokens.ends:
        between = between.replace(string, "")
    return [*others, (start, end if not between.strip() else stop)]


def _thinking_turn(
    template: Template, message: Message, prompt: Rendering, whole: Rendering
) -> _Turn:
    """A turn whose prompt opens the thinking that the template then hides.

    The sequence is the prompt, the thought, the answer and the template's end of turn.
    """
    content = message["content"]
    thought, closed, answer = content.removeprefix(_THINK).partition("</think>")
    if message.get("reasoning_content"):
        thought, answer = message["reasoning_content"], content
    elif not closed:
        thought, answer = "", content
    if message.get("tool_calls"):
        raise BadForm("the chat template hides an assistant turn's thinking before tool calls")
    said = f"{thought.strip()}\n</think>\n\n{answer.strip()}"
    end, ends = end_of_turn(template, whole, len(os.path.commonprefix([whole.text, prompt.text])))
    closing = _closing(template, whole, end) if ends else ""
    text = prompt.text + said + closing
    genuine = _joined_genuine(template, prompt, said, closing)
    start = len(prompt.text)
    return _Turn(text, prompt.text, start, len(text), [(start, len(text))], genuine, ends)


def _joined_genuine(
    template: Template, prompt: Rendering, said: str, closing: str
) -> list[tuple[int, int]] | None:
    tokens = template.tokens
    if prompt.genuine is None and not tokens.suspicious(said, spoken=True):
        return None
    before = tokens.places(prompt.text) if prompt.genuine is None else prompt.genuine
    at = len(prompt.text)
    spoken = [(at + start, at + end) for start, end in tokens.marks(said)]
    at += len(said)
    return before + spoken + [(at + start, at + end) for start, end in tokens.places(closing)]


def _closing(template: Template, rendering: Rendering, end: int) -> str:
    """The control tokens that end a turn there, right after one another."""
    text, start = rendering.text, end
    starts = None if rendering.genuine is None else {begin for begin, _ in rendering.genuine}
    while text[:start].endswith(template.tokens.ends):
        begin = start - next(len(s) for s in template.tokens.ends if text[:start].endswith(s))
        if starts is not None and begin not in starts:
            break
        start = begin
    return text[start:end]
