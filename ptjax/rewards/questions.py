"""What a judge is asked, and what its server replies."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ptjax.errors import UserError, did_you_mean
from ptjax.rewards.chat_server import ChatServer

_FIELD = re.compile(r"\{(\w+)\}")

HEAD = (
    ("principles", "Judge by these principles:\n{principles}"),
    ("criterion", "Judge by this criterion alone: {criterion}"),
    ("prompt", "<request>\n{prompt}\n</request>"),
)
"""Parts of a question, by the field without which one is left out: what all questions have."""


async def replies(
    server: ChatServer,
    model: str,
    body: Mapping[str, Any] | None,
    asked: Sequence[str],
    concurrency: int,
) -> list[str | Exception]:
    """What the server says to each question, or why it says nothing.

    Args:
      server: where questions go.
      model: as the server names it.
      body: what a request holds besides.
      asked: questions; equal ones are asked once.
      concurrency: questions at once.

    Raises:
      UserError: the server refuses all; concurrency below 1.
    """
    if concurrency < 1:
        raise UserError(f"judge: concurrency = {concurrency}; it must be above 0")
    shared = {"temperature": 0, "max_tokens": 1024, **(body or {}), "model": model}
    once = {text: {**shared, "messages": [{"role": "user", "content": text}]} for text in asked}
    loop, threads = asyncio.get_running_loop(), ThreadPoolExecutor(concurrency)
    try:
        waiting = [loop.run_in_executor(threads, server.reply, one) for one in once.values()]
        said = dict(zip(once, await asyncio.gather(*waiting, return_exceptions=True), strict=True))
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
    found: list[str | Exception] = []
    for text in asked:
        reply = said[text]
        if isinstance(reply, UserError) or not isinstance(reply, str | Exception):
            raise reply
        found.append(reply)
    return found


def about(
    i: int,
    prompts: Sequence[str],
    messages: Sequence[Any] | None,
    criterion: Sequence[str | None] | None,
    principles: Sequence[str],
) -> dict[str, str | None]:
    """What a question says of row i beside its answers: request, criterion, principles."""
    turns = (messages[i] if messages else None) or []
    talk = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
    return {
        "prompt": talk if len(turns) > 1 else prompts[i],
        "criterion": at(criterion, i),
        "principles": "\n".join(f"- {principle}" for principle in principles) or None,
    }


def question(
    fields: Mapping[str, str | None],
    template: str | None,
    parts: Sequence[tuple[str, str]],
    task: str,
    **more: float,
) -> str:
    """The template with its fields; what fields hold is not looked through for others.

    Args:
      fields: by name.
      template: of a user; None: the parts whose field is there, and the task.
      parts: (field, text).
      task: what is asked for at last.
      **more: further fields, numbers.
    """
    if template is None:
        template = "\n\n".join([*(text for name, text in parts if fields[name]), task])
    known = {**fields, **{name: f"{value:g}" for name, value in more.items()}}
    return _FIELD.sub(lambda m: (known[m[1]] or "") if m[1] in known else m[0], template)


def check_template(template: str | None, fields: Any, needed: str) -> None:
    """Checks that a user's template asks about what is judged.

    Args:
      template: None for ours.
      fields: the names of all.
      needed: the one that must be there.

    Raises:
      UserError: it is not.
    """
    if template is not None and f"{{{needed}}}" not in template:
        near = did_you_mean(needed, _FIELD.findall(template))
        raise UserError(f"judge: the template has no {{{needed}}} (of {sorted(fields)}){near}")


def at(column: Sequence[str | None] | None, i: int) -> str | None:
    """A row's value, None of a column that is not there."""
    return None if column is None else column[i]
