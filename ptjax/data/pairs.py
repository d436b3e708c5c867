"""Rows of two answers, one better than the other."""

import re
from typing import Any

from ptjax.data.formats import Example, read_conversation, read_turns
from ptjax.data.messages import BadForm, Message, read_tools
from ptjax.data.rows import Row

Tools = list[dict[str, Any]] | None


def two_answers(row: Row, form: str) -> list[Example]:
    """The two answers of a pair, each with the prompt that they share, the better one first.

    Args:
      row: with `chosen` and `rejected`, or `output` with both; the prompt beside them, or in them.
      form: one of the formats of pairs.

    Raises:
      BadForm: a column of the wrong type, or no prompt in common.

    """
    tools = read_tools(row["tools"]) if row.get("tools") else None
    if form.startswith("alpaca"):
        answers = row["output"] if form == "alpaca_outputs" else (row["chosen"], row["rejected"])
        if not isinstance(answers, list | tuple) or len(answers) != 2:
            raise BadForm("'output' is not a list of two texts, the better one first")
        if not all(isinstance(answer, str) for answer in answers):
            raise BadForm("the answers to an instruction are not both text")
        asked = (read_conversation({**row, "output": ""}, "alpaca").messages or [])[:-1]
        return [Example(prompt=asked, completion=[_assistant(answer)]) for answer in answers]
    if form == "sharegpt_preference":
        asked = read_conversation(row, "sharegpt").messages or []
        told = _behind(asked, [_turns(row[side], side) for side in ("chosen", "rejected")])
        return [Example(prompt=asked, completion=side, tools=tools) for side in told]
    return _chosen_and_rejected(row, tools)


def _chosen_and_rejected(row: Row, tools: Tools) -> list[Example]:
    """Text or messages, after a prompt of their own or with it in both."""
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    if _is_text(chosen) and _is_text(rejected) and (prompt is None or _is_text(prompt)):
        if prompt is None:
            prompt, (chosen, rejected) = _common_text(chosen, rejected)
        return [Example(prompt=prompt, completion=text) for text in (chosen, rejected)]
    sides = [_turns(chosen, "chosen"), _turns(rejected, "rejected")]
    asked: list[Message]
    if _is_text(prompt):
        asked = [{"role": "user", "content": prompt}]
        if any(
            side[0]["role"] != "assistant" for side in sides
        ):  # whole conversations, the prompt told once more
            asked, sides = _common_messages(sides)
            if all(message["content"] != prompt for message in asked):
                raise BadForm("'prompt' is not among the messages that the two sides share")
    elif prompt is None:
        asked, sides = _common_messages(sides)
    else:
        asked = read_turns(prompt, "prompt")
        sides = _behind(asked, sides)
    return [Example(prompt=asked, completion=side, tools=tools) for side in sides]


def _behind(asked: list[Message], sides: list[list[Message]]) -> list[list[Message]]:
    """The answers to a prompt, which both sides may tell once more."""
    if all(_bare(side[: len(asked)]) == _bare(asked) for side in sides):
        sides = [side[len(asked) :] for side in sides]
    for side, column in zip(sides, ("chosen", "rejected"), strict=True):
        if not side:
            raise BadForm(f"{column!r} has no answer after the messages of 'prompt'")
        if side[0]["role"] in ("system", "user"):
            raise BadForm(
                f"{column!r} begins with a {side[0]['role']} message: it is neither an answer to "
                "'prompt', nor do both sides begin with all of it"
            )
    return sides


def _bare(messages: list[Message]) -> list[Message]:
    """The messages without what is trained of them."""
    return [{**message, "trained": None} for message in messages]


def _common_messages(sides: list[list[Message]]) -> tuple[list[Message], list[list[Message]]]:
    """The messages that two conversations begin with alike, and what follows them in each."""
    bare = [_bare(side) for side in sides]
    common = 0
    while common < min(map(len, sides)) and bare[0][common] == bare[1][common]:
        common += 1
    if bare[0] == bare[1]:
        common -= 1  # the pair is dropped and counted once it is tokens
    if common < 1:
        raise BadForm("'chosen' and 'rejected' begin with no message in common: no prompt is seen")
    if common == min(map(len, sides)):
        raise BadForm("one of 'chosen' and 'rejected' is the beginning of the other")
    return sides[0][:common], [side[common:] for side in sides]


def _common_text(chosen: str, rejected: str) -> tuple[str, tuple[str, str]]:
    """What two texts begin with alike, up to a word's beginning, and what follows it in each."""
    common = 0
    while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
        common += 1
    if chosen == rejected:
        common = 0  # the pair is dropped and counted once it is tokens
    words = [match.end() for match in re.finditer(r"\s+", chosen[:common])]
    cut = words[-1] if words else 0
    if cut and chosen[cut - 1] == " ":
        cut -= 1  # tokenizers join a space to the word behind it
    return chosen[:cut], (chosen[cut:], rejected[cut:])


def _turns(given: Any, column: str) -> list[Message]:
    """An answer's messages, of which text is one."""
    return [_assistant(given)] if _is_text(given) else read_turns(given, column)


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _is_text(value: Any) -> bool:
    """Whether a value is text, and not the JSON of messages that some files hold."""
    return isinstance(value, str) and not value.lstrip().startswith("[{")
